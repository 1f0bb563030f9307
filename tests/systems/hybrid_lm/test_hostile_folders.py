"""Folders made to harm their reader: each is refused with a reason, in two seconds and half a gigabyte.

Every case runs in a process of its own, forked from one that has all imports behind it and a good folder loaded, with
its address space limited to what it has then and 512 MB more.
"""

import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from seqloom.core.checkpoint import manifest
from seqloom.data.tokenizer import train_tokenizer
from seqloom.systems.hybrid_lm.convert import convert
from tiny_models import make

SECONDS, BYTES = 2.0, 512 << 20

READER = """
import json, os, resource, signal, sys, time, warnings
from pathlib import Path
import torch
from seqloom.core import rooms
from seqloom.core.errors import SeqloomError
from seqloom.data.tokenizer import open_tokenizer

warnings.simplefilter("ignore")
torch.set_num_threads(1)

def read(folder):
    rooms.load(folder)
    open_tokenizer(folder)

def attempt(folder, limit):
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + limit, size + limit))
    signal.alarm(60)  # a reader that hangs
    begin = time.process_time()
    try:
        read(folder)
        told = {"read": True}
    except SeqloomError as error:
        told = {"refused": str(error)}
    except BaseException as error:
        told = {"slip": f"{type(error).__name__}: {error}"[:1000]}
    return told | {"seconds": time.process_time() - begin}

read(Path(sys.argv[1]))
print("ready", flush=True)
for line in sys.stdin:
    folder, limit = json.loads(line)
    child = os.fork()
    if child == 0:
        print(json.dumps(attempt(Path(folder), limit)), flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        print(json.dumps({"slip": f"ended with status {status}", "seconds": 0}), flush=True)
"""

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three good folders: one weights file, several, and one with a manifest."""
    top = tmp_path_factory.mktemp("good")
    (top / "single").mkdir()
    make("mtp").write_folder(top / "single")
    train_tokenizer(["a b c"] * 9, 300).save(top / "single")
    convert(top / "single", top / "sharded", shard_bytes=300_000)
    shutil.copytree(top / "sharded", top / "ours")
    (top / "sharded" / "manifest.json").unlink()
    return {name: top / name for name in ("single", "sharded", "ours")}


@pytest.fixture(scope="module")
def reader(good):
    if sys.platform != "linux":
        pytest.skip("sizes are read from /proc")
    command = [sys.executable, "-c", READER, str(good["single"])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"

        def ask(folder: Path) -> dict[str, Any]:
            process.stdin.write(json.dumps([str(folder), BYTES]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


# ---- changes to a good folder --------------------------------------------------------------------------------------


def config(remove: tuple[str, ...] = (), **fields: Any) -> Change:
    """Set or remove fields of config.json."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        kept = {name: value for name, value in json.loads(path.read_text()).items() if name not in remove}
        path.write_text(json.dumps(kept | fields))

    return change


def raw(name: str, content: bytes | Callable[[], bytes]) -> Change:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content())


def instead(name: str, make_it: Callable[[Path], object]) -> Change:
    """Something else under the name of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make_it(folder / name)

    return change


def link(name: str, target: str) -> Change:
    return instead(name, lambda path: path.symlink_to(target))


def header(change_fields: Callable[[dict[str, Any]], object], tail: bytes = b"") -> Change:
    """Rewrite the header of model.safetensors and leave its data alone."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        fields = json.loads(data[8 : 8 + length])
        change_fields(fields)
        path.write_bytes(weights_file(json.dumps(fields).encode(), data[8 + length :] + tail))

    return change


def weights_file(head: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(head) if length is None else length) + head + data


def entry(**facts: Any) -> Change:
    """Change what the header says of one tensor, the embedding."""
    return header(lambda fields: fields["backbone.embeddings.weight"].update(facts))


def tensors(change_tensors: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Other tensors in a file that is whole in itself."""

    def change(folder: Path) -> None:
        kept = load_file(folder / "model.safetensors")
        change_tensors(kept)
        save_file(kept, folder / "model.safetensors")

    return change


def index(change_index: Callable[[dict[str, Any]], object]) -> Change:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        fields = json.loads(path.read_text())
        change_index(fields)
        path.write_text(json.dumps(fields))

    return change


def put(file: str, tensor: str = "lm_head.weight") -> Change:
    """Let the index put a tensor into another file."""
    return index(lambda fields: fields["weight_map"].update({tensor: file}))


def grow(**fields: Any) -> Change:
    """A config.json and an all-hole weights file for it, of a size that no memory has."""

    def change(folder: Path) -> None:
        config(**fields)(folder)
        shape = [fields["vocab_size"], 64]

        def widen(head: dict[str, Any]) -> None:
            names = [name for name in head if name != "__metadata__"]
            shift = 0
            for name in sorted(names, key=lambda name: head[name]["data_offsets"]):
                size = head[name]["data_offsets"][1] - head[name]["data_offsets"][0]
                if name in ("backbone.embeddings.weight", "lm_head.weight"):
                    head[name]["shape"], size = shape, 4 * shape[0] * shape[1]
                head[name]["data_offsets"], shift = [shift, shift + size], shift + size
            widen.total = shift

        header(widen)(folder)
        path = folder / "model.safetensors"
        length = struct.unpack("<Q", path.read_bytes()[:8])[0]
        os.truncate(path, 8 + length + widen.total)

    return change


def many_entries(count: int) -> bytes:
    fields = ", ".join(f'"{i}": {{"dtype": "U8", "shape": [1], "data_offsets": [{i}, {i + 1}]}}' for i in range(count))
    return weights_file(f"{{{fields}}}".encode(), bytes(count))


def square_stack(folder: Path) -> None:
    """Experts whose two widths are equal, stacked, without a word on which axis is which."""
    config(moe_latent_size=32)(folder)

    def restack(kept: dict[str, torch.Tensor]) -> None:
        for name in [name for name in kept if ".experts." in name or "latent" in name]:
            del kept[name]
        for layer in ("backbone.layers.1", "backbone.layers.4", "backbone.layers.6", "mtp.layers.1"):
            for matrix in ("up_proj", "down_proj"):
                kept[f"{layer}.mixer.experts.{matrix}"] = torch.zeros(8, 32, 32)
            kept[f"{layer}.mixer.fc1_latent_proj.weight"] = torch.zeros(32, 64)
            kept[f"{layer}.mixer.fc2_latent_proj.weight"] = torch.zeros(64, 32)

    tensors(restack)(folder)


def listed_in_manifest(name: str) -> Change:
    """A manifest with a right digest of its own list, which names a file elsewhere."""

    def change(folder: Path) -> None:
        manifest.write_manifest(folder)
        files = json.loads((folder / "manifest.json").read_text())["files"]
        files[name] = files.pop("config.json")
        (folder / "manifest.json").write_bytes(manifest._render(files))

    return change


EMBEDDING = "backbone.embeddings.weight"
A_FILE = b'{"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}'
FIRST, SECOND = "model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors"

SINGLE: dict[str, tuple[Change, str]] = {
    # config.json as a file
    "config_missing": (instead("config.json", lambda path: None), "there is no config.json"),
    "config_a_folder": (instead("config.json", os.mkdir), "config.json: a folder, not a regular file"),
    "config_a_pipe": (instead("config.json", os.mkfifo), "config.json: a pipe, not a regular file"),
    "config_links_out": (link("config.json", "/etc/passwd"), "config.json: a link that leaves its folder"),
    "config_links_up": (link("config.json", "../../../etc/hostname"), "config.json: a link"),
    "config_links_to_itself": (link("config.json", "config.json"), "config.json: .*(itself|symbolic links)"),
    "config_links_nowhere": (link("config.json", "gone"), "config.json: a link to nothing"),
    "config_a_device": (link("config.json", "/dev/zero"), "config.json: a link that leaves its folder"),
    "config_empty": (raw("config.json", b""), "config.json: not a JSON file"),
    "config_not_utf8": (raw("config.json", b'{"model_type": "\xff"}'), "not UTF-8 at byte 16"),
    "config_cut_short": (raw("config.json", b'{"model_type": "nemo'), "not a JSON file: Unterminated string"),
    "config_a_list": (raw("config.json", b"[1]"), "expected an object, found a list"),
    "config_key_twice": (raw("config.json", b'{"model_type": "a", "model_type": "b"}'), "'model_type' appears twice"),
    "config_key_twice_deep": (raw("config.json", b'{"a": [{"b": 1, "b": 1}]}'), "the key 'b' appears twice"),
    "config_nan": (raw("config.json", b'{"layer_norm_epsilon": NaN}'), "NaN, which is not JSON"),
    "config_infinity": (raw("config.json", b'{"layer_norm_epsilon": Infinity}'), "Infinity, which is not JSON"),
    "config_infinity_deep": (
        raw("config.json", b'{"time_step_limit": {"a": -Infinity}}'),
        "Infinity, which is not JSON",
    ),
    "config_float_overflows": (raw("config.json", b'{"routed_scaling_factor": 1e999}'), "too large for a float"),
    "config_int_of_a_million_digits": (
        raw("config.json", b'{"vocab_size": ' + b"9" * 1_000_000 + b"}"),
        "a whole number of 1,000,000 digits",
    ),
    "config_nested": (raw("config.json", b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}"), "nested deeper than 64"),
    "config_nested_out_of_sight": (
        raw("config.json", b'{"a": ' * 300_000 + b"1" + b"}" * 300_000),
        "nested deeper than 64",
    ),
    "config_large": (raw("config.json", lambda: b'{"a": "' + b" " * (40 << 20) + b'"}'), "bytes; at most"),
    "config_of_a_terabyte": (lambda folder: os.truncate(folder / "config.json", 1 << 40), "bytes; at most"),
    "config_of_many_values": (raw("config.json", lambda: b'{"a": [' + b"[]," * 5_000_000 + b"0]}"), "values; at most"),
    "config_half_a_character": (raw("config.json", b'{"model_type": "\\ud800"}'), "half a character"),
    # config.json as a configuration
    "model_type_missing": (config(remove=("model_type",)), "names no model_type"),
    "model_type_other": (config(model_type="bert"), "'bert' is not known here"),
    "model_type_puzzle": (config(model_type="nemotron_h_puzzle"), "'nemotron_h_puzzle' is not known here"),
    "model_type_with_escapes": (config(model_type="\x1b[2J"), r"'\\x1b\[2J' is not known here"),
    "architecture_other": (config(architectures=["Evil"]), r"architectures \['Evil'\] are not read here"),
    "quantized": (config(quantization_config={"quant_method": "modelopt"}), "quant_algo None is not read here"),
    "quantized_by_a_list": (config(quantization_config=[]), r"quantization_config: \[\] is not allowed"),
    "quantized_beside": (raw("hf_quant_config.json", b"{}"), "hf_quant_config.json: has no 'quantization'"),
    "size_true": (config(hidden_size=True), "hidden_size: True is not allowed"),
    "size_a_text": (config(hidden_size="64"), "hidden_size: '64' is not allowed"),
    "size_a_float": (config(hidden_size=64.0), r"hidden_size: 64\.0 is not allowed"),
    "size_negative": (config(vocab_size=-256), "vocab_size: -256 is not allowed"),
    "size_zero": (config(mamba_num_heads=0), "mamba_num_heads: 0 is not allowed"),
    "size_absurd": (config(vocab_size=1 << 60), "vocab_size: .* is not allowed"),
    "size_a_list_of_a_million": (config(vocab_size=[0] * 500_000), r"vocab_size: \[0, 0.*… is not allowed"),
    "sizes_absurd_together": (config(hidden_size=1 << 23, vocab_size=1 << 23, head_dim=1 << 23), "parameters; at most"),
    "experts_absurd": (config(n_routed_experts=1 << 23), "tensors; at most"),
    "heads_undivided": (config(n_groups=3), "8 heads cannot be split into 3 groups"),
    "top_k_too_large": (config(num_experts_per_tok=9), "9 of 8 experts cannot be chosen"),
    "pattern_missing": (config(remove=("hybrid_override_pattern", "layers_block_type")), "is required"),
    "pattern_of_other_letters": (config(hybrid_override_pattern="MGM"), "character 1 of 'MGM' is 'G'"),
    "pattern_of_other_names": (config(layers_block_type=["mamba", "rwkv"]), "unknown layer name 'rwkv'"),
    "pattern_of_numbers": (config(layers_block_type=[1]), "must be a list of texts"),
    "pattern_of_lists": (config(layers_block_type=[["mamba"]]), "must be a list of texts"),
    "pattern_of_a_million": (config(hybrid_override_pattern="M" * 1_000_000), "a layer pattern of 1,000,000 entries"),
    "pattern_all_cuts": (config(hybrid_override_pattern="|||"), "at least one layer"),
    "pattern_against_count": (
        config(num_hidden_layers=9),
        r"num_hidden_layers = 9 contradicts the pattern .* 7 layers",
    ),
    "pattern_against_list": (
        config(hybrid_override_pattern="MEM*EMM"),
        "hybrid_override_pattern = 'MEM\\*EMM' contradicts layers_block_type = 'MEM\\*EME'",
    ),
    "mtp_spellings_apart": (config(mtp_hybrid_override_pattern="*-"), "contradicts mtp_layers_block_type"),
    "mtp_blocks_apart": (config(hybrid_override_pattern="MEM*EME/*E/E"), "must be equal"),
    "mtp_both_and_none": (
        config(hybrid_override_pattern="MEM*EME/*E", num_nextn_predict_layers=0),
        "num_nextn_predict_layers = 0 contradicts",
    ),
    "mtp_of_mamba": (
        config(mtp_hybrid_override_pattern="M", mtp_layers_block_type=["mamba"]),
        "no Mamba layers",
    ),
    "mtp_not_expected": (config(num_nextn_predict_layers=0), "unknown: mtp.*at most one prediction block"),
    "aliases_apart": (config(mamba_n_groups=4), "n_groups = 2 contradicts mamba_n_groups = 4"),
    "epsilons_apart": (config(norm_eps=1e-6), "layer_norm_epsilon = 1e-05 contradicts norm_eps = 1e-06"),
    "dtypes_apart": (config(dtype="bfloat16"), "torch_dtype = 'float32' contradicts dtype = 'bfloat16'"),
    "dtype_other": (config(torch_dtype="float8", dtype="float8"), "torch_dtype 'float8' is not known here"),
    "tied": (config(tie_word_embeddings=True), "tie_word_embeddings: True is not built here"),
    "biased": (config(use_bias=True), "use_bias: True is not built here"),
    "biased_by_a_number": (config(attention_bias=0), "attention_bias: 0 is not built here"),
    "other_activation": (config(mlp_hidden_act="silu"), "mlp_hidden_act: 'silu' is not built here"),
    "clamped_dt": (config(time_step_limit=[0.0, 0.1]), r"time_step_limit: \[0.0, 0.1\] would clamp dt"),
    "clamped_dt_elsewhere": (config(mamba_dt_limit=[1e-3, {"__float__": "Infinity"}]), "mamba_dt_limit: .* clamp dt"),
    "two_shared_experts": (config(n_shared_experts=2), "n_shared_experts: 2 is not built here"),
    "token_id_a_text": (config(eos_token_id="</s>"), "eos_token_id: '</s>' is not allowed"),
    # model.safetensors
    "weights_missing": (instead("model.safetensors", lambda path: None), "holds neither model.safetensors nor"),
    "weights_a_pipe": (instead("model.safetensors", os.mkfifo), "model.safetensors: a pipe"),
    "weights_link_out": (link("model.safetensors", "/etc/passwd"), "model.safetensors: a link that leaves"),
    "weights_a_pickle": (
        lambda folder: shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin"),
        "holds neither model.safetensors nor",
    ),
    "weights_empty": (raw("model.safetensors", b""), "0 bytes, too short for a header"),
    "weights_of_zeros": (raw("model.safetensors", bytes(1000)), "header does not begin with '{'"),
    "header_beyond_the_file": (raw("model.safetensors", weights_file(b"{}", length=1000)), "with a header of 1,000"),
    "header_of_2_to_the_64": (raw("model.safetensors", weights_file(b"{}", length=(1 << 64) - 1)), "with a header of"),
    "header_of_a_gigabyte": (
        lambda folder: (
            raw("model.safetensors", weights_file(b"{", length=1 << 30))(folder),
            os.truncate(folder / "model.safetensors", 2 << 30),
        ),
        "a header of 1,073,741,824 bytes; at most",
    ),
    "header_of_100000_tensors": (raw("model.safetensors", lambda: many_entries(100_000)), "100,000 tensors; at most"),
    "header_of_many_lists": (
        raw("model.safetensors", lambda: weights_file(b'{"a": [' + b"[]," * 4_000_000 + b"0]}")),
        "header: up to .* values; at most",
    ),
    "header_no_json": (raw("model.safetensors", weights_file(b"{a}")), "header: not a JSON file"),
    "header_nested": (raw("model.safetensors", weights_file(b'{"a":' * 99 + b"1" + b"}" * 99)), "nested deeper"),
    "header_a_name_twice": (
        raw("model.safetensors", weights_file(b'{"a": ' + A_FILE + b', "a": ' + A_FILE + b"}", b"x")),
        "the key 'a' appears twice",
    ),
    "header_with_infinity": (raw("model.safetensors", weights_file(b'{"a": Infinity}')), "header: Infinity"),
    "notes_of_numbers": (header(lambda f: f.update(__metadata__={"format": 1})), "__metadata__ must hold texts"),
    "notes_a_list": (header(lambda f: f.update(__metadata__=[])), "__metadata__ must hold texts"),
    "entry_a_number": (header(lambda f: f.update({EMBEDDING: 1})), "must have dtype, shape and data_offsets"),
    "entry_without_shape": (header(lambda f: f[EMBEDDING].pop("shape")), "must have dtype, shape and data_offsets"),
    "entry_with_more": (entry(code="import os"), "must have dtype, shape and data_offsets"),
    "dtype_unknown": (entry(dtype="F4"), "dtype 'F4' is not known here"),
    "dtype_a_list": (entry(dtype=["F32"]), r"dtype \['F32'\] is not known here"),
    "shape_negative": (entry(shape=[-256, -64]), r"shape \[-256, -64\] is not a list"),
    "shape_of_true": (entry(shape=[True, 16384]), r"shape \[True, 16384\] is not a list"),
    "shape_of_floats": (entry(shape=[256.0, 64]), r"shape \[256.0, 64\] is not a list"),
    "shape_overflows": (entry(shape=[1 << 33, 1 << 33]), "shape .* overflows"),
    "shape_overflows_beside_0": (entry(shape=[1 << 40, 1 << 40, 0]), "shape .* overflows"),
    "shape_overflows_to_fit": (entry(shape=[(1 << 61) + 128, 128]), "shape .* overflows"),
    "shape_of_many_axes": (entry(shape=[1] * 500 + [16384]), "is not a list of at most 16 sizes"),
    "shape_of_other_size": (entry(shape=[256, 63]), "has 64,512 bytes, but data_offsets .* span 65,536"),
    "offsets_reversed": (entry(data_offsets=[65536, 0]), "span -65,536"),
    "offsets_negative": (entry(data_offsets=[-65536, 0]), "data_offsets .* are not two positions"),
    "offsets_three": (entry(data_offsets=[0, 1, 2]), "data_offsets .* are not two positions"),
    "offsets_beyond_the_file": (entry(data_offsets=[1 << 40, (1 << 40) + 65536]), "belong to no tensor"),
    "tensors_overlap": (
        header(lambda f: f["lm_head.weight"].update(data_offsets=f[EMBEDDING]["data_offsets"])),
        "tensors .* overlap",
    ),
    "a_hole": (header(lambda f: f.pop(EMBEDDING)), "belong to no tensor"),
    "bytes_at_the_end": (header(lambda f: None, tail=b"evil"), "4 bytes at its end belong to no tensor"),
    "data_cut_short": (
        lambda folder: os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 1),
        "cut short",
    ),
    "tensor_missing": (tensors(lambda t: t.pop("lm_head.weight")), "missing: lm_head.weight"),
    "tensor_unknown": (tensors(lambda t: t.update(extra=torch.zeros(1))), "unknown: extra"),
    "tensor_misshapen": (tensors(lambda t: t.update({EMBEDDING: torch.zeros(64, 256)})), r"shape \(64, 256\), .* asks"),
    "tensor_of_integers": (tensors(lambda t: t.update({EMBEDDING: torch.zeros(256, 64).int()})), "in torch.int32"),
    "tensor_with_scale": (tensors(lambda t: t.update({"lm_head.weight_scale": torch.ones(1)})), "are quantized"),
    "tensor_under_two_names": (
        tensors(lambda t: t.update({"model.embeddings.weight": t[EMBEDDING].clone()})),
        "is there twice",
    ),
    "stack_misshapen": (
        tensors(lambda t: t.update({"backbone.layers.1.mixer.experts.up_proj": torch.zeros(8, 5, 24)})),
        r"has shape \(8, 5, 24\)",
    ),
    "stack_ambiguous": (square_stack, "stacks square matrices"),
    "tensors_of_gigabytes": (grow(vocab_size=1 << 24), "memory"),
    # manifest.json
    "manifest_a_pipe": (instead("manifest.json", os.mkfifo), "manifest.json: a pipe"),
    "manifest_of_nothing": (raw("manifest.json", b"{}"), "manifest.json: damaged"),
    "manifest_nested": (raw("manifest.json", b'{"a":' * 50_000), "manifest.json: damaged"),
    "manifest_leads_out": (listed_in_manifest("../../config.json"), "manifest.json: damaged"),
    "manifest_leads_to_root": (listed_in_manifest("/etc/passwd"), "manifest.json: damaged"),
    # tokenizer
    "tokenizer_a_pipe": (instead("tokenizer.json", os.mkfifo), "tokenizer"),
    "tokenizer_cut_short": (raw("tokenizer.json", b'{"version": "1.0"'), "tokenizer.json"),
    "tokenizer_a_list": (raw("tokenizer.json", b"[]"), "tokenizer.json"),
}

SHARDED: dict[str, tuple[Change, str]] = {
    "index_leads_up": (put("../model.safetensors"), "'../model.safetensors', which is not the plain name"),
    "index_leads_to_root": (put("/etc/passwd.safetensors"), "which is not the plain name"),
    "index_leads_down": (put("deep/model.safetensors"), "which is not the plain name"),
    "index_of_another_system": (put("..\\model.safetensors"), "which is not the plain name"),
    "index_with_a_nul": (put("model\0.safetensors"), "which is not the plain name"),
    "index_to_a_pickle": (put("pytorch_model.bin"), "which is not the plain name of a .safetensors file"),
    "index_to_a_number": (put(1), "which is not the plain name"),
    "index_to_a_list": (put([FIRST]), "which is not the plain name"),
    "index_to_nothing": (put("model-00009-of-00004.safetensors"), "which is not in this folder"),
    "index_to_a_file_with_a_long_name": (put("x" * 5000 + ".safetensors"), "which is not in this folder"),
    "index_to_another_shard": (put(FIRST), f"{FIRST}: tensor 'lm_head.weight' is missing"),
    "index_names_more": (put(FIRST, "evil.weight"), f"{FIRST}: tensor 'evil.weight' is missing"),
    "index_names_less": (index(lambda f: f["weight_map"].pop("lm_head.weight")), "does not name it"),
    "index_empty": (index(lambda f: f.update(weight_map={})), "has no 'weight_map'"),
    "index_without_map": (index(lambda f: f.pop("weight_map")), "has no 'weight_map'"),
    "index_with_a_list": (index(lambda f: f.update(weight_map=[FIRST])), "has no 'weight_map'"),
    "index_to_5000_files": (
        index(lambda f: f.update(weight_map={f"t{i}": f"{i}.safetensors" for i in range(5000)})),
        "names 5,000 files; at most",
    ),
    "index_of_a_gigabyte": (
        lambda folder: os.truncate(folder / "model.safetensors.index.json", 1 << 30),
        "index.json: .* bytes; at most",
    ),
    "index_links_out": (link("model.safetensors.index.json", "/etc/passwd"), "index.json: a link that leaves"),
    "index_a_folder": (instead("model.safetensors.index.json", os.mkdir), "index.json: a folder"),
    "index_a_name_twice": (
        raw("model.safetensors.index.json", b'{"weight_map": {"a": "b", "a": "c"}}'),
        "the key 'a' appears twice",
    ),
    "index_and_single_file": (
        lambda folder: shutil.copy(folder / FIRST, folder / "model.safetensors"),
        "holds model.safetensors and an index of other files",
    ),
    "shard_missing": (instead(SECOND, lambda path: None), f"'{SECOND}', which is not in this folder"),
    "shard_a_pipe": (instead(SECOND, os.mkfifo), f"{SECOND}: a pipe"),
    "shard_a_device": (link(SECOND, "/dev/full"), f"{SECOND}: a link that leaves"),
    "shard_links_out": (link(SECOND, "../single/model.safetensors"), f"{SECOND}: a link"),
    "shard_swapped": (
        lambda folder: shutil.copy(folder / FIRST, folder / SECOND),
        f"{SECOND}: tensor .* is missing",
    ),
    "shards_share_a_tensor": (
        lambda folder: save_file(
            load_file(folder / SECOND) | {"lm_head.weight": torch.zeros(256, 64)}, folder / SECOND
        ),
        f"{SECOND}: holds tensor 'lm_head.weight'; .* puts it in",
    ),
}

OURS: dict[str, tuple[Change, str]] = {
    "ours_with_another_config": (config(chunk_size=32), "config.json: .* were written"),
    "ours_with_a_changed_byte": (
        lambda folder: raw(FIRST, bytes([*(whole := (folder / FIRST).read_bytes())[:-1], whole[-1] ^ 1]))(folder),
        f"{FIRST}: digest differs",
    ),
    "ours_without_a_shard": (instead(FIRST, lambda path: None), f"{FIRST}: missing"),
    "ours_with_a_link": (link(FIRST, "/dev/zero"), f"{FIRST}: a link that leaves"),
    "ours_with_another_list": (
        lambda folder: raw("manifest.json", (folder / "manifest.json").read_bytes().replace(b"config", b"confid"))(
            folder
        ),
        "manifest.json: damaged",
    ),
}

CASES = [
    pytest.param(kind, change, told, id=name)
    for kind, cases in (("single", SINGLE), ("sharded", SHARDED), ("ours", OURS))
    for name, (change, told) in cases.items()
]


@pytest.mark.parametrize(("kind", "change", "told"), CASES)
def test_it_is_refused_with_a_reason(kind, change, told, good, reader, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(good[kind], folder)
    change(folder)
    answer = reader(folder)
    assert "refused" in answer, answer
    told_us = answer["refused"]
    assert re.search(told, told_us, re.DOTALL), told_us
    assert "\x1b" not in told_us
    assert len(told_us) < 2000
    assert answer["seconds"] < SECONDS


@pytest.mark.parametrize("kind", ["single", "sharded", "ours"])
def test_a_good_folder_is_read(kind, good, reader):
    assert reader(good[kind]).get("read")


@pytest.mark.parametrize(
    ("seed", "times"), [(0, 20), (1, 20), *(pytest.param(seed, 100, marks=pytest.mark.full) for seed in (2, 3))]
)
def test_random_damage_is_refused_or_harmless(seed, times, good, reader, tmp_path):
    """Bytes changed, cut out, doubled or appended: a folder is read, or refused in words, and nothing else."""
    draw = random.Random(seed)
    whole = good[("single", "sharded")[seed % 2]]
    shutil.copytree(whole, tmp_path / "folder")
    files = [path for path in sorted(whole.iterdir()) if path.suffix in (".json", ".safetensors")]
    refused = 0
    for _ in range(times):
        file = draw.choice(files)
        damaged = damage(bytearray(file.read_bytes()), draw)
        (tmp_path / "folder" / file.name).write_bytes(damaged)
        answer = reader(tmp_path / "folder")
        assert "slip" not in answer, (file.name, answer)
        refused += "refused" in answer
        shutil.copy(file, tmp_path / "folder" / file.name)
    assert refused > times / 4


def damage(data: bytearray, draw: random.Random) -> bytes:
    for _ in range(draw.choice([1, 1, 1, 2, 10])):
        # Most of a weights file is numbers, where any byte is as good as another; the head is what matters.
        at = draw.randrange(min(len(data), 20_000) + 1)
        match draw.randrange(5):
            case 0:
                data[at : at + 1] = draw.randbytes(1)
            case 1:
                data[at : at + 1] = bytes([draw.choice(b'0123456789-.,:[]{}"\\ eE/')])
            case 2:
                del data[at : at + draw.choice([1, 8, 100, 10**6])]
            case 3:
                data[at:at] = data[at : at + draw.choice([1, 8, 100])]
            case 4:
                data += bytes(draw.choice([1, 8]))
    return bytes(data)
