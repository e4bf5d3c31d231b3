"""Cluster files of provider ssh: the forms in which machines are named, Ray's keys, how each mistake is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshray.cluster_config import ClusterConfigError, parse_cluster_config, read_cluster_config
from meshray.cluster_schema import ClusterConfig

GOOD = """\
cluster_name: lab
provider:
  type: ssh
  ssh_user: me
nodes:
  - host: one
  - host: two.lab
    ssh_user: you
    labels: {zone: a}
"""
RAY = """\
cluster_name: lab
provider:
  type: local
  head_ip: 10.0.0.1
  worker_ips: [10.0.0.2, 10.0.0.3]
auth:
  ssh_user: me
  ssh_private_key: ~/.ssh/lab
file_mounts: {}
initialization_commands: []
setup_commands: [make]
head_setup_commands: []
worker_setup_commands: []
"""


def problems(text: str) -> list[str]:
    with pytest.raises(ClusterConfigError) as caught:
        parse_cluster_config(text, "f.yaml")
    return str(caught.value).splitlines()


def hosts(cluster: ClusterConfig) -> list[tuple[str, str, str]]:
    return [(node.name, node.host, node.ssh_user) for node in cluster.nodes]


def test_nodes_take_what_the_provider_says_and_are_called_after_their_hosts():
    cluster = parse_cluster_config(GOOD)
    assert hosts(cluster) == [("one", "one", "me"), ("two-lab", "two.lab", "you")]
    assert [node.python for node in cluster.nodes] == ["python3", "python3"]


@pytest.mark.parametrize("other", [
    "cluster_name: lab\nprovider: {type: ssh, ssh_user: me}\nhead: {host: one}\n"
    "workers: [{host: two.lab, ssh_user: you, labels: {zone: a}}]\n",
    GOOD.replace("  ssh_user: me\n", "").replace("nodes:", "auth: {ssh_user: me}\nnodes:"),
    GOOD.replace("  ssh_user: me\n", "  python: python3\n").replace("host: one", "host: one\n    ssh_user: me"),
])
def test_forms_that_mean_the_same_become_equal(other: str):
    assert parse_cluster_config(other) == parse_cluster_config(GOOD)


def test_a_flat_list_of_hosts():
    text = "cluster_name: a\nprovider: {type: ssh}\nhosts: [gpu1, '2001:db8::1']\n"
    assert hosts(parse_cluster_config(text)) == [("gpu1", "gpu1", ""), ("2001-db8-1", "2001:db8::1", "")]


def test_files_of_ray():
    cluster = parse_cluster_config(RAY)
    assert cluster.provider.type == "ssh"
    assert hosts(cluster) == [(f"10-0-0-{n}", f"10.0.0.{n}", "me") for n in (1, 2, 3)]
    assert {node.ssh_private_key for node in cluster.nodes} == {"~/.ssh/lab"}
    assert cluster.setup_commands == ["make"]


def test_removing_a_host_renames_no_other():
    shorter = parse_cluster_config(RAY.replace("10.0.0.2, ", ""))
    assert [node.name for node in shorter.nodes] == ["10-0-0-1", "10-0-0-3"]


def test_long_host_names_stay_different():
    text = "cluster_name: a\nprovider: {type: ssh}\nhosts: [{}, {}]\n"
    long = "very-long-name-of-a-machine-somewhere"
    names = [node.name for node in parse_cluster_config(text.replace("{}, {}", f"{long}1, {long}2")).nodes]
    assert len(set(names)) == 2
    assert all(len(name) <= 32 for name in names)


@pytest.mark.parametrize(("old", "new", "message"), [
    ("  - host: one", "  - name: one", "f.yaml:6: nodes[0]: host is missing: the machine's address, or its name in "
                                       "your OpenSSH configuration"),
    ("host: one", "host: -oProxyCommand=x", "f.yaml:6: nodes[0].host: must be the name or address of a machine, "
                                            "without user and port, not '-oProxyCommand=x'"),
    ("host: one", "host: me@one", "without user and port, not 'me@one'"),
    ("host: one", "host: two.lab\n    name: b", "f.yaml:8: nodes[1].host: two.lab is the host of nodes[0] already"),
    ("host: one", "host: one\n    control_port: 70000", "f.yaml:7: nodes[0].control_port: must be a whole number from "
                                                        "0 to 65535, not the number 70000"),
    ("host: one", "host: one\n    control_port: 7000\n    bulk_port: 7000",
     "f.yaml:8: nodes[0].bulk_port: must differ from control_port, which is 7000 too"),
    ("type: ssh", "type: local", "f.yaml:6: nodes[0].host: has a meaning with provider.type ssh only"),
    ("type: ssh", "type: local", "f.yaml:4: provider.ssh_user: has a meaning with provider.type ssh only"),
    ("type: ssh", "type: ssh\n  timeouts: {instal: 3}", "f.yaml:4: provider.timeouts.instal: no phase is called so"),
    ("type: ssh", "type: ssh\n  bulk_encryption: maybe", "f.yaml:4: provider.bulk_encryption: must be true or false"),
    ("nodes:", "hosts: [three]\nnodes:", "f.yaml:5: hosts: nodes names the machines already: use one of them"),
    ("nodes:", "workers: [{host: three}]\nnodes:", "f.yaml:5: workers: needs a head beside it"),
    ("nodes:", "file_mounts: {data: .}\nnodes:", "f.yaml:5: file_mounts.data: the path on the hosts must begin with"),
    ("nodes:", "max_workers: 3\nnodes:", "f.yaml:5: max_workers: this key of Ray has no meaning here: all hosts of "
                                         "the file are started: remove it"),
    ("nodes:", "setup_command: [make]\nnodes:", "f.yaml:5: setup_command: unknown key, did you mean setup_commands?"),
])
def test_one_mistake(old: str, new: str, message: str):
    assert any(message in line for line in problems(GOOD.replace(old, new, 1)))


def test_worker_ips_alone():
    text = "cluster_name: a\nprovider: {type: ssh, worker_ips: [b]}\n"
    assert problems(text) == ["f.yaml:2: provider.worker_ips: needs provider.head_ip beside it"]


def test_no_machines_at_all():
    assert "nodes is missing (or hosts, or head and workers)" in problems("cluster_name: a\nprovider: {type: ssh}")[0]


def test_mounts_are_relative_to_the_file_and_must_exist(tmp_path: Path):
    (tmp_path / "data").mkdir()
    file = tmp_path / "c.yaml"
    file.write_text(GOOD + "file_mounts:\n  /opt/data: data\n")
    assert read_cluster_config(str(file)).file_mounts == {"/opt/data": str(tmp_path / "data")}
    file.write_text(GOOD + "file_mounts:\n  /opt/data: daten\n")
    with pytest.raises(ClusterConfigError, match=r"c.yaml:11: file_mounts./opt/data: .*daten does not exist"):
        read_cluster_config(str(file))
