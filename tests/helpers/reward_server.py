"""A reward model behind HTTP: a tiny random transformers classifier with one label, and the paths that vLLM 0.32.0 and
SGLang 0.5.23 have for it (fields and answers from their sources: entrypoints/pooling/*/protocol.py, io_struct.py).

    python reward_server.py FAIL

Prints two ports, vLLM's and SGLang's. A request with a field that the server does not know is answered with 400, one
without the model's name with 404, and one whose text holds the word FAIL with 500. Bytes are tokens.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAME = "tiny-reward"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{{ p.text if p.type == 'text' else '[' ~ p.image_url.url ~ ']' }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
)
COMMON = {"model", "user", "truncate_prompt_tokens", "request_id", "priority", "use_activation"}
CHAT = {"messages", "add_generation_prompt", "continue_final_message", "chat_template_kwargs"}
FIELDS = {
    ("vllm", "/classify"): COMMON | CHAT,
    ("vllm", "/pooling"): COMMON | CHAT | {"task", "encoding_format"},
    ("vllm", "/score"): COMMON | {"queries", "documents"},
    ("sglang", "/classify"): {"model", "rid", "text", "input_ids", "image_data", "log_metrics"},
}


def write_template(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@contextlib.contextmanager
def reward_server(fail: str = "BREAK") -> Iterator[tuple[str, str]]:
    """The addresses of one in a process of its own: vLLM's and SGLang's."""
    command = [sys.executable, "-P", __file__, fail]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ports = process.stdout.readline().split()
        assert len(ports) == 2, "the server did not start"
        yield f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def main() -> None:
    import jinja2
    import torch

    declared = torch.library.Library("torchvision", "DEF")  # a torchvision of another build fails without them
    for name in ("nms", "qnms"):
        declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from transformers import LlamaConfig, LlamaForSequenceClassification

    fail = sys.argv[1]
    torch.manual_seed(7)
    torch.set_num_threads(1)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=257, num_labels=1, pad_token_id=256, initializer_range=0.3, **shape)
    model = LlamaForSequenceClassification(config).eval()
    template = jinja2.Environment(trim_blocks=False).from_string(TEMPLATE)

    def logit(text: str) -> float:
        with torch.no_grad():
            return float(model(torch.tensor([list(text.encode())])).logits[0, 0])

    def activated(value: float, body: dict[str, Any]) -> float:
        return value if body.get("use_activation") is False else float(torch.sigmoid(torch.tensor(value)))

    def answer(kind: str, path: str, body: dict[str, Any]) -> Any:
        if kind == "sglang":
            texts = [body["text"]] if isinstance(body["text"], str) else body["text"]
            made = [{"embedding": [logit(text)], "meta_info": {"prompt_tokens": len(text.encode())}} for text in texts]
            return made[0] if isinstance(body["text"], str) else made
        head = {"id": "1", "object": "list", "created": 0, "model": NAME, "usage": {"prompt_tokens": 0}}
        if path == "/score":
            pairs = [body["queries"] + "\n" + document for document in body["documents"]]
            scores = [activated(logit(pair), body) for pair in pairs]
            return head | {"data": [{"index": i, "object": "score", "score": s} for i, s in enumerate(scores)]}
        value = activated(logit(template.render(messages=body["messages"])), body)
        if path == "/pooling":
            return head | {"data": [{"index": 0, "object": "pooling", "data": [value]}]}
        return head | {"data": [{"index": 0, "label": "LABEL_0", "probs": [value], "num_classes": 1}]}

    class Handler(BaseHTTPRequestHandler):
        kind = "vllm"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = FIELDS.get((self.kind, self.path))
            if known is None or body.get("model") != NAME:
                self.send_error(404)
            elif set(body) - known:
                self.send_error(400, f"unknown: {set(body) - known}")
            elif fail in json.dumps(body):
                self.send_error(500)
            else:
                reply = json.dumps(answer(self.kind, self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class SglangHandler(Handler):
        kind = "sglang"

    vllm, sglang = (ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in (Handler, SglangHandler))
    threading.Thread(target=sglang.serve_forever, daemon=True).start()
    print(vllm.server_address[1], sglang.server_address[1], flush=True)
    vllm.serve_forever()


if __name__ == "__main__":
    main()
