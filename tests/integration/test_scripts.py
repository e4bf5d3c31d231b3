"""Programs of their own: implied start, ``__main__``, and the workers' output at the driver."""

from __future__ import annotations

import re

import pytest

from .support import finish, run_script, start_script, wait_until

pytestmark = pytest.mark.usefixtures("root")


def test_first_call_starts_a_cluster_which_ends_with_the_program(root, tmp_path):
    output = run_script("""
        import meshray

        @meshray.remote
        def f(x):
            return x + 1

        @meshray.remote
        class A:
            def g(self):
                return meshray.get(f.remote(41))

        assert not meshray.is_initialized()
        print("answer", meshray.get(A.remote().g.remote()))
        assert meshray.is_initialized()
        """, tmp_path)
    assert "answer 42" in output


def test_everything_of_main_works_in_workers(tmp_path):
    output = run_script("""
        import dataclasses
        import meshray

        LIMIT = 3

        @dataclasses.dataclass
        class Point:
            x: int
            y: int = LIMIT

            def sum(self):
                return self.x + self.y + helper()

        class Wrong(Exception):
            pass

        def helper():
            return LIMIT

        @meshray.remote
        def move(point):
            assert isinstance(point, Point)
            return Point(point.x + helper(), point.y)

        @meshray.remote
        def fails():
            raise Wrong("main's own")

        @meshray.remote
        class Keeper:
            def __init__(self, point):
                self.point = point

            def move(self):
                self.point = meshray.get(move.remote(self.point))
                return self.point

        if __name__ == "__main__":
            moved = meshray.get(move.remote(Point(1)))
            assert isinstance(moved, Point) and moved == Point(4, 3) and moved.sum() == 10
            assert meshray.get(Keeper.remote(moved).move.remote()) == Point(7, 3)
            try:
                meshray.get(fails.remote())
            except Wrong as error:
                print("caught", "main's own" in str(error))
        """, tmp_path)
    assert "caught True" in output


def test_modules_beside_the_script_are_importable_in_workers(tmp_path):
    (tmp_path / "beside.py").write_text("VALUE = 5\ndef value():\n    return VALUE\n")
    output = run_script("""
        import meshray
        import beside

        f = meshray.remote(beside.value)
        print("value", meshray.get(f.remote()))
        """, tmp_path)
    assert "value 5" in output


def test_redefinition_in_main(tmp_path):
    output = run_script("""
        import meshray

        for version in (1, 2, 3):
            exec(f"def helper():\\n    return {version}")

            @meshray.remote
            def f():
                return helper()

            print("version", meshray.get(f.remote()))
        """, tmp_path)
    assert re.findall(r"version (\d)", output) == ["1", "2", "3"]


def test_script_fed_on_standard_input(tmp_path):
    output = run_script("""
        import subprocess, sys
        program = '''
        import meshray

        @meshray.remote
        def f():
            return 7

        print("got", meshray.get(f.remote()))
        '''
        import textwrap
        subprocess.run([sys.executable, "-"], input=textwrap.dedent(program), text=True, check=True)
        """, tmp_path)
    assert "got 7" in output


PRINTS = """
    import logging, sys
    import meshray

    @meshray.remote
    def hello():
        print("printed in a task")
        print("to stderr", file=sys.stderr)
        logging.getLogger("somebody").warning("logged in a task")

    @meshray.remote
    class Speaker:
        def speak(self):
            print("printed in an actor")

    meshray.init(num_cpus=2, {options})
    speaker = Speaker.remote()
    meshray.get([hello.remote(), speaker.speak.remote()])
    """


def test_output_of_workers_reaches_the_driver_with_a_prefix(tmp_path):
    output = run_script(PRINTS.format(options="log_to_driver=True"), tmp_path)
    for text, name in (("printed in a task", "hello"), ("to stderr", "hello"), ("logged in a task", "hello"),
                       ("printed in an actor", "Speaker")):
        assert re.search(rf"\({name} pid=\d+[^)]*\).* {text}", output), f"{text!r} not in:\n{output}"


def test_output_of_workers_can_be_turned_off(tmp_path):
    output = run_script(PRINTS.format(options="log_to_driver=False"), tmp_path)
    assert "printed in" not in output


def test_repeated_lines_are_folded(tmp_path):
    output = run_script("""
        import meshray

        @meshray.remote(num_cpus=0.1)
        def repeat():
            print("the same line")

        meshray.init(num_cpus=2)
        meshray.get([repeat.remote() for _ in range(300)])
        """, tmp_path)
    assert 1 <= output.count("the same line") < 20, output
    assert re.search(r"repeated \d+x", output), output


def test_warning_names_the_resource_nobody_has(tmp_path):
    script = start_script("""
        import sys
        import meshray

        meshray.init(num_cpus=1)
        ref = meshray.remote(resources={"unobtainium": 2})(lambda: 1).remote()
        ready, pending = meshray.wait([ref], timeout=3)
        print("still pending", len(pending))
        """, tmp_path)
    output = finish(script)
    assert "unobtainium" in output
    assert "still pending 1" in output


def test_uncaught_remote_error_shows_the_remote_line(tmp_path):
    output = run_script("""
        import meshray

        @meshray.remote
        def f():
            return {}["no such key"]  # the remote line

        meshray.get(f.remote())
        """, tmp_path, ok=False)
    assert "the remote line" in output
    assert "KeyError" in output


def test_program_ends_although_tasks_still_run(tmp_path):
    script = start_script("""
        import threading
        import meshray

        @meshray.remote
        def forever():
            threading.Event().wait()

        meshray.init(num_cpus=2)
        refs = [forever.remote() for _ in range(4)]
        print("leaving")
        """, tmp_path)
    assert "leaving" in finish(script, 30)


def test_sys_exit_code_is_the_program_s(tmp_path):
    script = start_script("import sys, meshray\nmeshray.init(num_cpus=1)\nsys.exit(5)\n", tmp_path)
    finish(script, ok=False)
    assert wait_until(lambda: script.poll() is not None and script.returncode == 5)
