"""An engine of another library, run by a Python that has it: `rival_engine.py ENGINE FOLDER PROMPT TOKENS THREADS`.

It converts a Llama checkpoint to its own form of int4 with blocks of 32, says on stdout that it is ready, and answers
each line on stdin with the time that so many tokens took behind a prompt. Nothing of this project is imported here: the
libraries live in an environment of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

__all__ = ["ENGINES", "main"]

_WORD = 70
"""Every token that is read: what a token costs does not depend on which it is."""

_CONTEXT = 352


def _llama_cpp(folder: Path, prompt: int, tokens: int, threads: int) -> tuple[str, Callable[[], None]]:
    import llama_cpp

    path = folder / "q4_0.gguf"
    if not path.is_file():
        _write_gguf(folder, path)
    engine = llama_cpp.Llama(
        model_path=str(path), n_threads=threads, n_threads_batch=threads, n_ctx=_CONTEXT, verbose=False
    )

    def prepare() -> Callable[[], None]:
        engine.reset()
        engine.eval([_WORD] * prompt)

        def write() -> None:
            for _ in range(tokens):
                engine.eval([_WORD])

        return write

    return llama_cpp.__version__, _measured(prepare)


def _genai(folder: Path, prompt: int, tokens: int, threads: int) -> tuple[str, Callable[[], None]]:
    import onnxruntime_genai as genai

    out = folder / "genai"
    if not (out / "genai_config.json").is_file():
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(folder), "-o", str(out)]
        command += ["-p", "int4", "-e", "cpu", "-c", str(folder / "cache")]
        options = ["int4_accuracy_level=4", "int4_block_size=32"]
        subprocess.run([*command, "--extra_options", *options], check=True, stdout=subprocess.DEVNULL)
    config = json.loads((out / "genai_config.json").read_text(encoding="utf-8"))
    config["model"]["decoder"]["session_options"] |= {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
    (out / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    model = genai.Model(str(out))

    def prepare() -> Callable[[], None]:
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=_CONTEXT, min_length=_CONTEXT, do_sample=False)
        generator = genai.Generator(model, params)
        generator.append_tokens(np.full(prompt, _WORD, np.int32))

        def write() -> None:
            for _ in range(tokens):
                generator.generate_next_token()

        return write

    return str(genai.__version__), _measured(prepare)


def _openvino(folder: Path, prompt: int, tokens: int, threads: int) -> tuple[str, Callable[[], None]]:
    import openvino
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    out = folder / "openvino"
    if not (out / "openvino_model.xml").is_file():
        how = OVWeightQuantizationConfig(bits=4, sym=True, group_size=32, ratio=1.0)
        OVModelForCausalLM.from_pretrained(str(folder), export=True, quantization_config=how).save_pretrained(str(out))
    limits = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(str(out / "openvino_model.xml"), "CPU", limits)
    request = compiled.create_infer_request()
    names = {port.get_any_name() for port in compiled.inputs}

    def read(start: int, count: int) -> None:
        feed: dict[str, Any] = {
            "input_ids": np.full((1, count), _WORD, np.int64),
            "attention_mask": np.ones((1, start + count), np.int64),
            "position_ids": np.arange(start, start + count, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        request.infer({name: value for name, value in feed.items() if name in names}, share_inputs=True)

    def prepare() -> Callable[[], None]:
        request.reset_state()
        read(0, prompt)

        def write() -> None:
            for index in range(tokens):
                read(prompt + index, 1)

        return write

    return str(openvino.__version__), _measured(prepare)


ENGINES = {"llama.cpp": _llama_cpp, "onnxruntime-genai": _genai, "OpenVINO": _openvino}
"""By name."""


def _measured(prepare: Callable[[], Callable[[], None]]) -> Callable[[], None]:
    def run() -> None:
        write = prepare()
        wall, cpu = perf_counter(), process_time()
        write()
        _answer({"cpu_s": process_time() - cpu, "wall_s": perf_counter() - wall})

    return run


def _write_gguf(folder: Path, path: Path) -> None:
    """Writes the checkpoint for llama.cpp: matrices in Q4_0, the embedding, which is the output layer too, in Q8_0."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = load_file(folder / "model.safetensors")
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_attention_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    kinds = gguf.GGMLQuantizationType
    for name, kind in (("token_embd", kinds.Q8_0),):
        data = gguf.quants.quantize(weights["model.embed_tokens.weight"], kind)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    for index in range(config["num_hidden_layers"]):
        where = f"model.layers.{index}"
        writer.add_tensor(f"blk.{index}.attn_norm.weight", weights[f"{where}.input_layernorm.weight"])
        writer.add_tensor(f"blk.{index}.ffn_norm.weight", weights[f"{where}.post_attention_layernorm.weight"])
        for ours, theirs in parts.items():
            weight = weights[f"{where}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):  # llama.cpp turns pairs of neighbours, transformers halves
                heads = config["num_attention_heads"]
                split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
                weight = np.ascontiguousarray(split.swapaxes(1, 2).reshape(weight.shape))
            data = gguf.quants.quantize(weight, kinds.Q4_0)
            writer.add_tensor(f"blk.{index}.{theirs}.weight", data, raw_dtype=kinds.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _answer(content: dict[str, object]) -> None:
    print(json.dumps(content), file=sys.__stdout__, flush=True)


def main() -> None:
    """Gets the engine ready, then measures once for each line on stdin."""
    name, folder, prompt, tokens, threads = sys.argv[1:6]
    sys.stdout = sys.stderr  # whatever the libraries print
    try:
        version, run = ENGINES[name](Path(folder), int(prompt), int(tokens), int(threads))
        run_once = run
    except Exception as err:  # noqa: BLE001 - whatever a foreign library raises is the answer
        _answer({"error": f"{type(err).__name__}: {err}"[:300]})
        return
    _answer({"ready": version})
    for _ in sys.stdin:
        run_once()


if __name__ == "__main__":
    main()
