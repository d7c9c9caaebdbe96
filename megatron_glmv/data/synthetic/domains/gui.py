"""Screens of a made-up program, and what to do on them: an action as a JSON object, boxes in thousandths.

    {"action_type":"click","box_2d":[x1,y1,x2,y2]}
    {"action_type":"input_text","box_2d":[x1,y1,x2,y2],"text":"..."}
    {"action_type":"scroll","direction":"down"}

which is what the verifier `gui_action` grades: the same keys, and the product of the parts (IoU for a box).
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from megatron_glmv.data.synthetic.canvas import COLOURS
from megatron_glmv.data.synthetic.domains.drawing import Box, Sheet
from megatron_glmv.data.synthetic.domains.objects import NAMES, coordinates
from megatron_glmv.data.synthetic.domains.ocr import word
from megatron_glmv.data.synthetic.domains.problem import Ask, Domain, Draw, Kind, Medium
from megatron_glmv.data.types import IMAGE

COMMANDS = ("save", "open", "send", "back", "help", "stop", "print", "share", "edit", "close")
FIELDS = ("name", "city", "email", "phone", "street", "note")
OPTIONS = (
    "sound",
    "wifi",
    "maps",
    "alarm",
    "light",
    "news",
    "radio",
    "backup",
    "sync",
    "updates",
    "dark mode",
    "location",
)
ROWS, SWITCHES = 4, 8
BUTTON, FIELD, TICK, SWITCH = "button", "field", "tick", "switch"


@dataclass(frozen=True)
class Widget:
    kind: str
    name: str
    at: Box
    """In pixels; what is to be clicked."""
    on: bool = False


@dataclass(frozen=True)
class Screen:
    media: tuple[Medium, ...]
    widgets: tuple[Widget, ...]
    side: int

    def named(self, name: str) -> Widget:
        return next(widget for widget in self.widgets if widget.name == name)


def _screen(sheet: Sheet, widgets: list[Widget]) -> Screen:
    return Screen((Medium(IMAGE, sheet.pixels()),), tuple(widgets), sheet.width)


def draw_colours(d: Draw) -> Screen:
    """Four coloured buttons of one quarter each."""
    sheet, half, inset = Sheet(d.side, d.side, d.style), d.side / 2, d.side / 28
    widgets = []
    for place, colour in enumerate(d.some(NAMES, 4)):
        top, left = place // 2 * half, place % 2 * half
        at = (left + inset, top + inset, left + half - inset, top + half - inset)
        sheet.box(at, COLOURS[colour])
        widgets.append(Widget(BUTTON, colour, at))
    return _screen(sheet, widgets)


def draw_buttons(d: Draw) -> Screen:
    """Three to five labelled buttons below one another."""
    count, sheet = d.between(3, 5), Sheet(d.side, d.side, d.style)
    pitch, widgets = d.side / count, []
    for place, name in enumerate(d.some(COMMANDS, count)):
        at = (d.side * 0.12, place * pitch + 3, d.side * 0.88, (place + 1) * pitch - 3)
        sheet.box(at, outline=d.style.ink, width=d.side / 90)
        sheet.text((d.side / 2, (place + 0.5) * pitch), name, min(pitch * 0.6, d.side * 0.16))
        widgets.append(Widget(BUTTON, name, at))
    return _screen(sheet, widgets)


def _tick(sheet: Sheet, at: Box, on: bool) -> None:
    left, top, right, bottom = at
    sheet.box(at, outline=sheet.style.ink, width=sheet.width / 150)
    if on:
        sheet.line([(left + 2, (top + bottom) / 2), ((left + right) / 2, bottom - 3), (right - 2, top + 2)])


def draw_form(d: Draw) -> Screen:
    """Two fields, two boxes to tick, two buttons, in rows of random order."""
    s, sheet = float(d.side), Sheet(d.side, d.side, d.style)
    pitch, widgets = s / 6, []
    size = s * 0.075
    sheet.box((0, 0, s, pitch * 0.8), d.style.ink)
    sheet.text((s / 2, pitch * 0.4), word(d, 2), size, d.style.background)
    rows = d.some([FIELD, FIELD, TICK, TICK], ROWS)
    fields, options = iter(d.some(FIELDS, 2)), iter(d.some(OPTIONS[:9], 2))
    for place, kind in enumerate(rows):
        y = (place + 1.45) * pitch
        if kind == FIELD:
            name, at = next(fields), (s * 0.36, y - pitch * 0.36, s * 0.95, y + pitch * 0.36)
            sheet.text((s * 0.05, y), name, size, anchor="lm")
            sheet.box(at, outline=d.style.ink, width=s / 150)
            widgets.append(Widget(FIELD, name, at))
        else:
            name, at = next(options), (s * 0.06, y - pitch * 0.3, s * 0.06 + pitch * 0.6, y + pitch * 0.3)
            on = d.pick((True, False))
            _tick(sheet, at, on)
            sheet.text((s * 0.26, y), name, size, anchor="lm")
            widgets.append(Widget(TICK, name, at, on))
    for place, name in enumerate(d.some(COMMANDS, 2)):
        at = (s * (0.06 + 0.48 * place), pitch * 5.1, s * (0.46 + 0.48 * place), pitch * 5.85)
        sheet.box(at, outline=d.style.ink, width=s / 110)
        sheet.text(((at[0] + at[2]) / 2, (at[1] + at[3]) / 2), name, size)
        widgets.append(Widget(BUTTON, name, at))
    return _screen(sheet, widgets)


def draw_settings(d: Draw) -> Screen:
    """A bar of three buttons and a list of eight switches, of which exactly one stands otherwise than the rest."""
    s, sheet = float(d.side), Sheet(d.side, d.side, d.style)
    pitch, widgets = s / 9.2, []
    for place, name in enumerate(d.some(COMMANDS, 3)):
        at = (s * (0.02 + 0.33 * place), s * 0.015, s * (0.31 + 0.33 * place), pitch * 0.95)
        sheet.box(at, outline=d.style.ink, width=s / 220)
        sheet.text(((at[0] + at[2]) / 2, (at[1] + at[3]) / 2), name, s * 0.045)
        widgets.append(Widget(BUTTON, name, at))
    usual, odd = d.pick((True, False)), d.between(0, SWITCHES - 1)
    for place, name in enumerate(d.some(OPTIONS, SWITCHES)):
        y, on = (place + 1.6) * pitch, usual != (place == odd)
        at = (s * 0.78, y - pitch * 0.3, s * 0.96, y + pitch * 0.3)
        sheet.text((s * 0.05, y), name, s * 0.05, anchor="lm")
        sheet.box(at, d.style.ink if on else None, d.style.ink, s / 220)
        knob = d.style.background if on else d.style.ink
        x = at[2] - pitch * 0.3 if on else at[0] + pitch * 0.3
        sheet.ellipse((x - pitch * 0.2, y - pitch * 0.2, x + pitch * 0.2, y + pitch * 0.2), knob)
        sheet.line([(s * 0.04, y + pitch * 0.5), (s * 0.96, y + pitch * 0.5)], width=s / 400)
        widgets.append(Widget(SWITCH, name, at, on))
    return _screen(sheet, widgets)


def _work(screen: Screen) -> int:
    """A coloured button is one thing to see; a label is read letter by letter."""
    return sum(1 if widget.name in NAMES else len(widget.name) for widget in screen.widgets)


def _click(
    screen: Screen, d: Draw, task: str, phrasings: tuple[str, ...], target: Widget, why: str, places: int
) -> Ask:
    """`places`: where widgets of its kind may be, equally often; the best click without looking meets one of them."""
    box = coordinates(target.at, screen.side, screen.side)
    answer = json.dumps({"action_type": "click", "box_2d": box}, separators=(",", ":"))
    steps = [why, f"it is at {box}"]
    return d.ask(task, phrasings, answer, steps, chance=1 / places, work=_work(screen) + len(steps), name=target.name)


def ask_button(screen: Screen, d: Draw) -> Ask:
    target = d.pick([widget for widget in screen.widgets if widget.kind == BUTTON])
    phrasings = ("press the {name} button", "click on the button {name}", "tap {name}")
    buttons = sum(widget.kind == BUTTON for widget in screen.widgets)
    return _click(screen, d, "gui_press", phrasings, target, f"the button is {target.name}", buttons)


def ask_type(screen: Screen, d: Draw) -> Ask:
    target, text = d.pick([widget for widget in screen.widgets if widget.kind == FIELD]), word(d, 2)
    box = coordinates(target.at, screen.side, screen.side)
    steps = [f"the field is {target.name}", f"it is at {box}"]
    phrasings = ("type {text} into {name}", "fill in the {name}: {text}", "write {text} in the field {name}")
    answer = json.dumps({"action_type": "input_text", "box_2d": box, "text": text}, separators=(",", ":"))
    work = _work(screen) + 3
    return d.ask("gui_type", phrasings, answer, steps, chance=1 / ROWS, work=work, name=target.name, text=text)


def ask_tick(screen: Screen, d: Draw) -> Ask:
    target = d.pick([widget for widget in screen.widgets if widget.kind == TICK])
    phrasings = ("change the setting {name}", "toggle {name}", "flip the box of {name}")
    return _click(screen, d, "gui_tick", phrasings, target, f"{target.name} is {'on' if target.on else 'off'}", ROWS)


def ask_odd(screen: Screen, d: Draw) -> Ask:
    switches = [widget for widget in screen.widgets if widget.kind == SWITCH]
    target = next(w for w in switches if sum(other.on == w.on for other in switches) == 1)
    phrasings = ("make all the switches the same", "set the one switch that differs like the rest")
    why = f"only {target.name} is {'on' if target.on else 'off'}"
    return _click(screen, d, "gui_odd", phrasings, target, why, SWITCHES)


def ask_scroll(screen: Screen, d: Draw) -> Ask:
    """The list has to be moved where the setting is not on the screen: which is to be seen, not known."""
    shown = {widget.name for widget in screen.widgets}
    if d.pick((True, False)):
        name = d.pick([option for option in OPTIONS if option not in shown])
        action: dict[str, object] = {"action_type": "scroll", "direction": "down"}
        steps = [f"{name} is not on the screen", "so go down"]
    else:
        target = d.pick([widget for widget in screen.widgets if widget.kind == SWITCH])
        name, box = target.name, coordinates(target.at, screen.side, screen.side)
        action = {"action_type": "click", "box_2d": box}
        steps = [f"{name} is on the screen", f"it is at {box}"]
    phrasings = ("flip {name}; scroll down if it is not shown", "toggle {name}, or go down the list to find it")
    answer = json.dumps(action, separators=(",", ":"))
    return d.ask("gui_find", phrasings, answer, steps, chance=0.5, work=_work(screen) + 4, name=name)


GUI = Domain(
    "gui_action",
    (
        Kind("colours", draw_colours, (ask_button, ask_button), (0,)),
        Kind("buttons", draw_buttons, (ask_button, ask_button), (1,)),
        Kind("form", draw_form, (ask_button, ask_type, ask_tick), (2,)),
        Kind("settings", draw_settings, (ask_button, ask_odd, ask_scroll), (3,)),
    ),
)
