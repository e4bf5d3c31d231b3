"""Cluster files: what is accepted, and how each mistake is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshray.cluster_config import (
    ClusterConfigError,
    json_schema,
    parse_cluster_config,
    parse_size,
    read_cluster_config,
)

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cluster.yaml"
GOOD = """\
cluster_name: pair
provider:
  type: local
nodes:
  - name: left
    num_cpus: 2
    resources: {left: 4}
  - name: right
    object_store_memory: 256MiB
"""


def problems(text: str) -> list[str]:
    with pytest.raises(ClusterConfigError) as caught:
        parse_cluster_config(text, "f.yaml")
    return str(caught.value).splitlines()


def test_example_is_good():
    cluster = read_cluster_config(str(EXAMPLE))
    assert [node.name for node in cluster.nodes] == ["head", "side"]
    assert cluster.nodes[0].object_store_memory == 256 * 2**20


def test_values_and_defaults():
    cluster = parse_cluster_config(GOOD)
    left, right = cluster.nodes
    assert (left.num_cpus, left.resources, left.memory) == (2.0, {"left": 4.0}, None)
    assert right.object_store_memory == 256 * 2**20
    assert (cluster.provider.type, cluster.durability, cluster.shards, cluster.schedulers) == ("local", "relaxed", 1, 2)


def test_nodes_without_names_are_numbered():
    cluster = parse_cluster_config("cluster_name: a\nnodes: [{}, {name: x}, {num_gpus: }]")
    assert [node.name for node in cluster.nodes] == ["node-0", "x", "node-2"]
    assert cluster.nodes[2].num_gpus is None


def test_merge_keys_and_anchors():
    cluster = parse_cluster_config("cluster_name: a\nnodes: [&n {num_cpus: 3}, {<<: *n, num_gpus: 1}]")
    assert (cluster.nodes[1].num_cpus, cluster.nodes[1].num_gpus) == (3.0, 1.0)


@pytest.mark.parametrize(("old", "new", "message"), [
    ("num_cpus: 2", "num_cpu: 2", "f.yaml:6: nodes[0].num_cpu: unknown key, did you mean num_cpus?"),
    ("cluster_name: pair", "clustername: pair", "f.yaml:1: clustername: unknown key, did you mean cluster_name?"),
    ("type: local", "type: slurm", "f.yaml:3: provider.type: must be one of local, ssh, not 'slurm'"),
    ("num_cpus: 2", "num_cpus: -2", "f.yaml:6: nodes[0].num_cpus: must be a number, zero or more, not the number -2"),
    ("num_cpus: 2", "num_cpus: '2'", "f.yaml:6: nodes[0].num_cpus: must be a number, zero or more, not '2'"),
    ("num_cpus: 2", "num_cpus: yes",
     "f.yaml:6: nodes[0].num_cpus: must be a number, zero or more, not the truth value yes"),
    ("num_cpus: 2", "num_cpus: .inf", "f.yaml:6: nodes[0].num_cpus: must be finite"),
    ("num_cpus: 2", "num_cpus: [2]", "f.yaml:6: nodes[0].num_cpus: must be a number, zero or more, not a list"),
    ("num_cpus: 2", "labels: {zone: 7}",
     "f.yaml:6: nodes[0].labels.zone: must be text (put it in quotes), not the number 7"),
    ("{left: 4}", "{left: -4}", "f.yaml:7: nodes[0].resources.left: must be a number, zero or more, not the number -4"),
    ("{left: 4}", "{CPU: 4}", "f.yaml:7: nodes[0].resources.CPU: has a key of its own: num_cpus"),
    ("name: right", "name: left", "f.yaml:8: nodes[1].name: left is the name of nodes[0] already"),
    ("name: right", "name: ../x",
     "f.yaml:8: nodes[1].name: must be a name of at most 32 lower-case letters, digits and hyphens, not '../x'"),
    ("256MiB", "12 parsecs", "f.yaml:9: nodes[1].object_store_memory: '12 parsecs' is no size: write bytes, or a "
                             "number with KiB, MiB, GiB, TiB (512MiB)"),
    ("256MiB", "0", "f.yaml:9: nodes[1].object_store_memory: must be a size above zero (bytes, or 512MiB), not the "
                    "number 0"),
    ("provider:", "durability: never\nprovider:",
     "f.yaml:2: durability: must be one of relaxed, fsync, not 'never'"),
    ("provider:", "replicas: 9\nprovider:",
     "f.yaml:2: replicas: must be a whole number from 1 to 7, not the number 9"),
    ("provider:", "shards: 0\nprovider:", "f.yaml:2: shards: must be a whole number from 1 to 64, not the number 0"),
    ("provider:", "schedulers: 2.5\nprovider:",
     "f.yaml:2: schedulers: must be a whole number from 1 to 16, not the number 2.5"),
    ("cluster_name: pair", "cluster_name: current",
     "f.yaml:1: cluster_name: current has a meaning of its own, choose another"),
    ("  type: local", "  - local", "f.yaml:3: provider: must be a mapping (key: value), not a list"),
])
def test_one_mistake(old: str, new: str, message: str):
    assert old in GOOD
    assert message in problems(GOOD.replace(old, new, 1))


def test_all_mistakes_at_once_in_the_order_of_lines():
    text = GOOD.replace("num_cpus", "num_cpu").replace("pair", "Pair!").replace("256MiB", "lots")
    assert [line.split(":")[1] for line in problems(text)] == ["1", "6", "9"]


@pytest.mark.parametrize(("text", "message"), [
    ("", "the file is empty"),
    ("# only a comment\n", "the file is empty"),
    ("just words", "f.yaml:1: must be a mapping"),
    ("a: [", "f.yaml:1: not valid YAML"),
    ("a: 1\n b: 2", "f.yaml:2: not valid YAML"),
    ("a: 1\n---\nb: 2", "f.yaml:2: not valid YAML"),
    ("\x00", "not valid YAML"),
    ("nodes: [{}]", "cluster_name is missing"),
    ("cluster_name: a", "nodes is missing"),
    ("cluster_name: a\nnodes: []", "f.yaml:2: nodes: needs at least one entry"),
    ("cluster_name: a\nnodes: &n [*n]", "f.yaml:2: nodes[0]: must be a mapping"),
    ("cluster_name: a\ncluster_name: b\nnodes: [{}]", "f.yaml:2: cluster_name: given twice"),
    ("cluster_name: a\nnodes: [{? [x] : 1}]", "a key must be a word, not a list"),
    ("cluster_name: !!python/object/apply:os.getcwd []\nnodes: [{}]", "f.yaml:1: cluster_name: must be a name"),
    ("cluster_name: a\nnodes: [{name: 2024-01-01}]", "f.yaml:2: nodes[0].name: must be a name"),
])
def test_files_that_are_wrong_as_a_whole(text: str, message: str):
    assert message in "\n".join(problems(text))


def test_unreadable_files(tmp_path: Path):
    with pytest.raises(ClusterConfigError, match=r"cannot read .*missing.yaml: No such file"):
        read_cluster_config(str(tmp_path / "missing.yaml"))
    with pytest.raises(ClusterConfigError, match="Is a directory"):
        read_cluster_config(str(tmp_path))
    (tmp_path / "latin.yaml").write_bytes(b"cluster_name: \xe4\xff")
    with pytest.raises(ClusterConfigError, match="not UTF-8"):
        read_cluster_config(str(tmp_path / "latin.yaml"))


@pytest.mark.parametrize(("text", "size"), [
    ("1024", 1024), ("512MiB", 512 * 2**20), ("1.5 GiB", 3 * 2**29), ("2GB", 2 * 10**9), ("64m", 64 * 2**20),
    ("8B", 8),
])
def test_sizes(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1MiB", "1 2", "1QiB", "1e9"])
def test_no_sizes(text: str):
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


def test_schema_names_every_key():
    schema = json_schema()
    assert set(schema["$defs"]["NodeSpec"]["properties"]) >= {"name", "num_cpus", "object_store_memory", "labels"}
    memory = str(schema["$defs"]["NodeSpec"]["properties"]["memory"])
    assert "string" in memory and "integer" in memory


def test_where_and_how_much_is_spilled():
    text = "cluster_name: a\nnodes:\n- spill_directory: {}\n  spill_max: {}\n"
    node = parse_cluster_config(text.format("/data/spill", "2GiB")).nodes[0]
    assert (node.spill_directory, node.spill_max) == ("/data/spill", 2 * 2**30)
    assert parse_cluster_config(text.format("/d", "0")).nodes[0].spill_max == 0
    assert problems(text.format("data", "-1")) == [
        "f.yaml:4: nodes[0].spill_max: must be a size (bytes, or 512MiB), or 0 for never, not the number -1"]
    assert problems(text.format("data", "much")) == [
        "f.yaml:4: nodes[0].spill_max: 'much' is no size: write bytes, or a number with KiB, MiB, GiB, TiB (512MiB)"]
    assert problems(text.format("data", "1MiB")) == [
        "f.yaml:3: nodes[0].spill_directory: must be an absolute path, not 'data'"]
