"""Small sources of models: a GGUF file, a wheel that contains one, and a hub on this machine."""

import hashlib
import http.server
import json
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
    "lm_head": "output",
    "model.layers.": "blk.",
}
_GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def make_gguf(model: Path, path: Path, architecture: str = "llama", kinds: Sequence[str] = ()) -> Path:
    """Write a tiny model as a GGUF file, as llama.cpp would: in float32, or its matrices in turn in these types."""
    config = json.loads((model / "config.json").read_text())
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])
    if "sliding_window" in config:
        writer.add_sliding_window(config["sliding_window"] or 0)
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    _add_tokenizer(writer, tokenizer, (model / "chat_template.jinja").read_text())
    matrices = 0
    for name, weight in load_file(model / "model.safetensors").items():
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        count = next((heads[part] for part in heads if part in name), None)
        weight = _permuted(weight, count) if count and architecture == "llama" else weight
        weight = weight + 1 if architecture.startswith("gemma") and name.endswith("norm.weight") else weight
        if not kinds or weight.ndim == 1:
            writer.add_tensor(_renamed(name, architecture), weight)
        else:
            kind = gguf.GGMLQuantizationType[kinds[matrices % len(kinds)]]
            writer.add_tensor(_renamed(name, architecture), gguf.quantize(weight, kind), raw_dtype=kind)
            matrices += 1
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any], template: str) -> None:
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    special = {entry["content"] for entry in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(tokens.index("<|im_start|>"))  # a real file has one; transformers 5.17 needs it
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_chat_template(template)


def _renamed(name: str, architecture: str) -> str:
    names = _NAMES | _GEMMA if architecture.startswith("gemma") else _NAMES
    for theirs, ours in names.items():
        name = name.replace(theirs, ours)
    return name


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Interleave rotary halves, as llama.cpp stores queries and keys."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def make_wheel(folder: Path, member: Path, name: str = "tinymodel") -> Path:
    """Make `tinymodel==1.0`, a wheel that contains the file in `tinymodel/`."""
    info = f"{name}-1.0.dist-info"
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(member, f"{name}/{member.name}")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


class Hub:
    """Replies of the server, and the requests it received."""

    def __init__(self) -> None:
        self.models: dict[str, Path] = {}
        self.commits: dict[str, str] = {"main": COMMIT}
        self.asked: list[str] = []
        self.url = ""


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """The three requests with which huggingface_hub fetches a model, answered on this machine."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self._describe("/".join(parts[2:4]), parts[5] if parts[4:5] == ["revision"] else "main", parts[4:5])
            else:
                self._file("/".join(parts[:2]), "/".join(parts[4:]))

        def _describe(self, name: str, revision: str, kind: list[str]) -> None:
            if name not in hub.models:
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if revision not in hub.commits and revision not in hub.commits.values():
                return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            files = [path for path in sorted(hub.models[name].iterdir()) if path.is_file()]
            if kind == ["tree"]:
                tree = [{"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0"} for path in files]
                return self._send(200, json.dumps(tree).encode(), {})
            siblings = [{"rfilename": path.name} for path in files]
            commit = hub.commits.get(revision, revision)
            return self._send(200, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode(), {})

        def _file(self, name: str, file: str) -> None:
            content = (hub.models[name] / file).read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": hub.commits["main"]})

        def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
