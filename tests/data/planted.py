"""A corpus in which every sample that has to go is planted, with the step and the reason it has to go for.

Pictures are smooth random textures: unlike each other to a perceptual hash, and as compressible as photographs.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
from data.media_files import FAST, X264, clip
from PIL import Image

NOUNS = """lamp river engine violin basket tower helmet garden ladder teapot bridge parrot anchor window candle kettle
    saddle mirror pillar blanket""".split()  # noqa: SIM905
PLACES = "kitchen harbour meadow workshop station library market cellar theatre orchard valley attic".split()  # noqa: SIM905
STATES = "old wooden painted broken shiny quiet narrow heavy bright dusty curved tiny".split()  # noqa: SIM905
QUESTION = "how many of the seven brass keys on the left hand board were taken before the night porter came back"
SHORT_QUESTION = "which of the nine copper bells hangs lowest"
TEMPLATE = "look at the picture and choose the one letter that stands for the right answer below"


def picture(seed: int, width: int = 360, height: int = 280) -> Image.Image:
    rough = np.random.default_rng(seed).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **({"quality": 92} if kind == "JPEG" else {}) | options)
    return out.getvalue()


def film(kind: str, codec: str, size: tuple[int, int], fps: int, options: dict[str, str]) -> bytes:
    """Two seconds in which one texture becomes another, at any size and rate."""
    with TemporaryDirectory() as folder:
        with av.open(f"{folder}/film", "w", format=kind) as box:
            stream = box.add_stream(codec, rate=fps, options=options)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            stream.codec_context.thread_count = 1
            for n in range(2 * fps):
                shown = Image.blend(picture(930), picture(931), n / (2 * fps)).resize(size)
                box.mux(stream.encode(av.VideoFrame.from_image(shown)))
            box.mux(stream.encode(None))
        return Path(folder, "film").read_bytes()


def words(number: int) -> str:
    """An English caption; no two share a sequence of 13 words."""
    draw = random.Random(number)
    subject, place = draw.choice(NOUNS), draw.choice(PLACES)
    return (
        f"A {draw.choice(STATES)} {subject} and a {draw.choice(STATES)} {draw.choice(NOUNS)} stand in the {place} "
        f"beside the {draw.choice(STATES)} {draw.choice(NOUNS)}, photographed on day {number} of the year"
    )


def caption(text: str, name: str = "0.jpg", domain: str = "caption", kind: str = "image") -> dict[str, Any]:
    content = [{"type": kind, kind: name}, {"type": "text", "text": "Describe this."}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": text}]
    return {"messages": messages, "domain": domain}


@dataclass
class Corpus:
    """Samples as raw members, and what must become of them."""

    samples: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    planted: dict[str, tuple[str, str]] = field(default_factory=dict)
    """key -> (step, reason)"""

    def add(self, key: str, conversation: Any, media: dict[str, bytes], goes: tuple[str, str] | None = None) -> None:
        raw = conversation if isinstance(conversation, bytes) else json.dumps(conversation).encode()
        self.samples.append((key, {"json": raw, **media}))
        if goes:
            self.planted[key] = goes

    def write(self, directory: Path, per_shard: int, *, order: int | None = None) -> None:
        """As plain tar files; `order` is the seed of another order."""
        directory.mkdir(parents=True)
        samples = list(self.samples)
        if order is not None:
            random.Random(order).shuffle(samples)
        for start in range(0, len(samples), per_shard):
            with tarfile.open(directory / f"raw-{start // per_shard:04d}.tar", "w") as shard:
                for key, members in samples[start : start + per_shard]:
                    for name, data in members.items():
                        info = tarfile.TarInfo(f"{key}.{name}")
                        info.size = len(data)
                        shard.addfile(info, io.BytesIO(data))


def corpus(clean: int = 40) -> Corpus:
    made = Corpus()
    for n in range(clean):
        made.add(f"clean-{n:03d}", caption(words(n)), {"0.jpg": encoded(picture(n))})
    made.add(
        "clean-zh", caption("一只旧的木制小提琴放在明亮的厨房里，旁边有一盏灯。"), {"0.jpg": encoded(picture(900))}
    )
    made.add("clean-page", {"messages": [{"role": "document", "content": words(901)}], "domain": "text"}, {})
    for n in range(3):  # one picture, several questions: no duplicates outside the caption domains
        made.add(f"clean-vqa-{n}", caption(words(910 + n), domain="vqa"), {"0.jpg": encoded(picture(910))})
    made.add("clean-template", caption(f"{TEMPLATE} {words(905)}"), {"0.jpg": encoded(picture(905))})
    most = " ".join(QUESTION.split()[:12])
    made.add("clean-twelve", caption(f"{most}, he asked in the {words(906)}"), {"0.jpg": encoded(picture(906))})
    _duplicates(made)
    _contaminated(made)
    _broken(made)
    _unfit(made)
    return made


def _duplicates(made: Corpus) -> None:
    """The larger one stays: copies come out smaller in pixels, or in bytes at equal size."""
    near = ("duplicates", "near_duplicate")
    for n, (name, data) in enumerate(
        {
            "0.jpg": encoded(picture(0), quality=30),
            "0.webp": encoded(picture(1).resize((270, 210)), "WEBP", quality=60),
            "0.png": encoded(picture(2).resize((288, 224), Image.Resampling.LANCZOS), "PNG"),
        }.items()
    ):
        made.add(f"copy-{n}", caption(words(920 + n), name), {name: data}, near)
    made.add("zcopy-exact", caption(words(923)), {"0.jpg": encoded(picture(3))}, near)
    made.add("zcopy-twice", caption(words(924)), {"0.jpg": encoded(picture(3), quality=60)}, near)
    made.add("zcopy-vqa", caption(words(911), domain="vqa"), {"0.jpg": encoded(picture(910), quality=50)}, near)
    text = words(901).upper().replace(",", " -")
    made.add("zcopy-page", {"messages": [{"role": "document", "content": text}], "domain": "text"}, {}, near)
    first = film("webm", "libvpx-vp9", (192, 144), 24, FAST)
    made.add("clean-film", caption(words(930), "0.webm", "video", "video"), {"0.webm": first})
    second = film("mp4", "libx264", (128, 96), 12, X264)
    made.add("zcopy-film", caption(words(930), "0.mp4", "video", "video"), {"0.mp4": second}, near)
    other = clip("webm", codec="libvpx-vp9", frames=48, options=FAST)
    made.add("clean-other-film", caption(words(930), "0.webm", "video", "video"), {"0.webm": other})


def _contaminated(made: Corpus) -> None:
    asked = f"He wondered {QUESTION}, and nobody knew."
    made.add("leak-text", caption(asked), {"0.jpg": encoded(picture(940))}, ("contamination", "text"))
    text = f"{words(941)}. {SHORT_QUESTION.title()}?"
    made.add("leak-short", caption(text), {"0.jpg": encoded(picture(941))}, ("contamination", "text"))
    taken = encoded(picture(950).resize((250, 220)), quality=50)
    made.add("leak-picture", caption(words(942)), {"0.jpg": taken}, ("contamination", "picture"))


def _broken(made: Corpus) -> None:
    broken = ("inspect", "broken")
    data = encoded(picture(960))
    made.add("bad-cut", caption(words(960)), {"0.jpg": data[: len(data) // 2]}, broken)
    made.add("bad-empty", caption(words(961)), {"0.jpg": b""}, broken)
    made.add("bad-missing", caption(words(962)), {}, broken)
    made.add("bad-json", b"{not json", {"0.jpg": data}, broken)
    made.add("bad-kind", caption(words(963)), {"0.jpg": b"<html>not found</html>"}, broken)
    made.add("bad-shape", {"messages": "hello"}, {"0.jpg": data}, broken)
    cut = clip("webm", codec="libvpx-vp9", frames=24, options=FAST)
    made.add("bad-film", caption(words(964), "0.webm", "video", "video"), {"0.webm": cut[: len(cut) // 2]}, broken)
    made.add("bad!key", caption(words(965)), {"0.jpg": data}, broken)


def _unfit(made: Corpus) -> None:
    def add(key: str, text: str, image: Image.Image, step: str, reason: str) -> None:
        made.add(key, caption(text), {"0.jpg": encoded(image)}, (step, reason))

    add("unfit-aspect", words(970), picture(970, 900, 220), "heuristics", "aspect")
    add("unfit-small", words(971), picture(971, 160, 150), "heuristics", "small")
    add("unfit-blank", words(972), Image.new("RGB", (300, 300), (9, 120, 200)), "heuristics", "blank")
    add("unfit-short", "Lamp!", picture(973), "heuristics", "short_text")
    add("unfit-loop", "buy these cheap lamps now " * 12, picture(974), "heuristics", "repetition")
    add("unfit-run", "What a view, wo" + "o" * 40 + "w it is", picture(975), "heuristics", "repetition")
    german = "Eine alte Lampe steht auf dem Tisch in der Küche und daneben liegt ein kleines Buch."
    add("unfit-german", german, picture(976), "language", "language")
    add("unfit-russian", "Старая лампа стоит на столе рядом с книгой", picture(977), "language", "script")


def evaluation(directory: Path) -> Path:
    """Two texts, one picture, and a template that twenty items share."""
    directory.mkdir(parents=True)
    (directory / "e.png").write_bytes(encoded(picture(950), "PNG"))
    lines: list[Any] = [
        {"question": QUESTION, "answer": "three"},
        {"prompt": f"{SHORT_QUESTION}?", "answer": "the last"},
    ]
    lines.append({"messages": caption("blue", "e.png")["messages"]})
    lines += [{"question": f"{TEMPLATE}: {n}", "answer": "B"} for n in range(20)]
    path = directory / "bench.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
