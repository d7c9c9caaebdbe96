"""The system turn in which GLM-4.5V reads what tools it may call: wording and form of GLM-4.5's published template.

A conversation's `tools` are function definitions as OpenAI's chat API has them; each goes in as a line of JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.types import Json

_HEAD = """
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
_FORM = """</tools>

For each function call, output the function name and arguments within the following XML format:
<tool_call>{function-name}
<arg_key>{arg-key-1}</arg_key>
<arg_value>{arg-value-1}</arg_value>
<arg_key>{arg-key-2}</arg_key>
<arg_value>{arg-value-2}</arg_value>
...
</tool_call>"""


def tool_prompt(tools: Sequence[Json], key: str) -> tuple[str, str]:
    """What stands behind `<|system|>`: text that stays text whatever the definitions spell, then text whose tags are
    special tokens. Raises SampleError for a definition without a name."""
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise SampleError(key, "an entry of tools is no function definition with a name")
    return _HEAD + "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in tools), _FORM
