"""Our chat templates against Jinja templates in the published form of GLM's, through transformers' own renderer.

The templates below are written from what GLM-4.5's and GLM-4.1V's render (`docs/data.md` says what is published); the
exact bytes of GLM-4.5V's own file were not to be had, which is why `glmv data template` compares with the one in the
directory that a user has. Not covered: the wording around definitions of tools, which both sides take from one place.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_glmv.data import template_check
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.template import GLM41V, GLM45V
from megatron_glmv.data.template_check import PROBES, check_template
from megatron_glmv.data.tokenizer import Tokenizer, train_tokenizer
from megatron_glmv.data.tool_prompt import tool_prompt

PARTS = """
{%- macro shown(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part.type == "text" -%}{{ part.text }}
{%- else -%}{{ "<|begin_of_" ~ part.type ~ "|><|" ~ part.type ~ "|><|end_of_" ~ part.type ~ "|>" }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""
GLM45 = (
    "[gMASK]<sop>"
    + PARTS
    + """
{%- set found = namespace(user=-1) -%}
{%- for m in messages -%}{%- if m.role == "user" -%}{%- set found.user = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- if tools -%}
{{ "<|system|>" ~ HEAD }}{%- for tool in tools -%}{{ tool | tojson ~ "\\n" }}{%- endfor -%}{{ FORM }}
{%- endif -%}
{%- for m in messages -%}
{%- if m.role == "tool" -%}
{%- if messages[loop.index0 - 1].role != "tool" -%}{{ "<|observation|>" }}{%- endif -%}
{{ "\\n<tool_response>\\n" ~ m.content ~ "\\n</tool_response>" }}
{%- elif m.role == "assistant" -%}
{%- set thought = m.reasoning_content if loop.index0 > found.user and m.reasoning_content -%}
{{ "<|assistant|>\\n<think>" ~ thought | trim ~ "</think>" }}
{%- if shown(m.content) | trim -%}{{ "\\n" ~ shown(m.content) | trim }}{%- endif -%}
{%- for call in m.tool_calls or [] -%}
{{ "\\n<tool_call>" ~ call.function.name ~ "\\n" }}
{%- for name, value in call.function.arguments.items() -%}
{%- set text = value if value is string else value | tojson -%}
{{ "<arg_key>" ~ name ~ "</arg_key>\\n<arg_value>" ~ text ~ "</arg_value>\\n" }}
{%- endfor -%}
{{ "</tool_call>" }}
{%- endfor -%}
{%- else -%}
{{ "<|" ~ m.role ~ "|>\\n" ~ shown(m.content) }}
{%- if m.role == "user" and enable_thinking is defined and not enable_thinking -%}/nothink{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ "<|assistant|>\\n" ~ ("<think></think>\\n" if enable_thinking is defined and not enable_thinking) }}
{%- endif -%}
"""
)
GLM41 = (
    "[gMASK]<sop>"
    + PARTS
    + """
{%- for m in messages -%}{{ "<|" ~ m.role ~ "|>\\n" ~ shown(m.content) }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<|assistant|>\\n" }}{%- endif -%}
"""
)
NAME = {GLM45V: GLM45, GLM41V: GLM41}


def written(template: str) -> str:
    """With what stands around definitions of tools, told apart at the place of a definition."""
    text, form = tool_prompt([{"name": "x"}], "")
    head = text[: text.index("{")]
    return NAME[template].replace("HEAD", json.dumps(head)).replace("FORM", json.dumps(form))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(
        ["Which city is this? And here? Be brief. A tall spire: Ulm. zoom factor part top"] * 9, directory, 360
    )
    return directory


@pytest.mark.parametrize("template", [GLM45V, GLM41V])
def test_every_kind_of_conversation_is_rendered_as_the_directory_has_it(made: Path, template: str) -> None:
    (made / template_check.FILE).write_text(written(template))
    found = check_template(made, template)
    assert [difference for difference in found if difference] == []
    assert len(found) == (len(PROBES) if template == GLM45V else 5)


@pytest.mark.parametrize("template", [GLM45V, GLM41V])
def test_the_sandbox_renders_as_transformers_does(made: Path, template: str) -> None:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_file=str(made / "tokenizer.json"), chat_template=written(template))
    (made / template_check.FILE).write_text(written(template))
    own = template_check.own_template(made)
    for probe in PROBES:
        options = {"add_generation_prompt": probe.prompt, "enable_thinking": probe.thinking}
        tools = list(probe.tools) or None
        theirs = fast.apply_chat_template(list(probe.messages), tools=tools, tokenize=False, **options)
        assert own.render(messages=probe.messages, tools=tools, **options) == theirs
        ids = fast.apply_chat_template(list(probe.messages), tools=tools, return_dict=False, **options)
        assert Tokenizer.load(made).parse(theirs) == ids


@pytest.mark.parametrize(
    ("old", "new", "differing"),
    [
        ("/nothink", "", {"one answer without", "the same without thinking", "prompt without thinking"}),
        ("loop.index0 > found.user and ", "", {"two turns, system, image and video", "prompt"}),
        ('</think>" }}', '</think>\\n" }}', {p.name for p in PROBES}),
        ('"<|assistant|>\\n" ~ (', '"<|assistant|>" ~ (', {"prompt", "prompt without thinking"}),
        ('~ "</arg_key>\\n', '~ "</arg_key>', {"tool calls and responses", "tools told"}),
    ],
)
def test_another_form_is_named_with_both_texts(made: Path, old: str, new: str, differing: set[str]) -> None:
    text = written(GLM45V)
    assert old in text
    (made / template_check.FILE).write_text(text.replace(old, new))
    found = {difference.probe.name: difference for difference in check_template(made, GLM45V)}
    assert {name for name, difference in found.items() if difference} == differing


def test_the_command_says_which_differ_and_ends_with_65(made: Path) -> None:
    command = [sys.executable, "-m", "megatron_glmv.cli", "data", "template", str(made)]
    (made / template_check.FILE).write_text(written(GLM45V).replace("/nothink", ""))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 65
    assert "differs  one answer without" in done.stdout and "5 of 8 kinds" in done.stdout


def test_a_template_cannot_reach_out_of_its_sandbox_and_a_broken_one_is_named(made: Path) -> None:
    for text, reason in (
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "fails on"),
        ("{% for m in messages %}", "no Jinja template"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ):
        (made / template_check.FILE).write_text(text)
        with pytest.raises(DataError, match=reason):
            check_template(made, GLM45V)
    (made / template_check.FILE).unlink()
    with pytest.raises(DataError, match="has no chat template"):
        check_template(made, GLM45V)
    (made / template_check.OLDER).write_text(json.dumps({"chat_template": written(GLM45V)}))
    assert not any(check_template(made, GLM45V))
