"""`ClusterManager` in real processes: in a thread, in a Twisted program, across a fork, at exit. Each test is a small program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

HEAD = """
import os, sys, time
from caterwaul import ClusterManager
from caterwaul.membership.errors import LocalError
def cluster(name, **more):
    return ClusterManager(node={"name": name, **more}, membership={"discovery": []}, admin={"socket": ""})
"""


def run(program: str, timeout_s: float = 30.0) -> list[str]:
    """The lines it printed; it must end by itself, well, and say nothing else."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", HEAD + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_importing_the_package_installs_no_reactor() -> None:
    assert run('import caterwaul.managers.web.wsgi; print("twisted.internet.reactor" in sys.modules)') == ["False"]


def test_importing_the_fronts_of_frameworks_installs_no_reactor() -> None:
    assert run('import caterwaul.managers.web.flask, caterwaul.managers.web.django; print("twisted.internet.reactor" in sys.modules)') == ["False"]


def test_what_is_made_lazily_is_made_once_in_each_process() -> None:
    lines = run(
        """
        from caterwaul.managers.web.lazily import Lazily
        made = Lazily(lambda: [os.getpid()])
        assert made() is made()
        sys.stdout.flush()
        child = os.fork()
        if child: os.waitpid(child, 0)
        print(made() == [os.getpid()], flush=True)
        """
    )
    assert lines == ["True", "True"]


def test_a_server_may_wait_until_its_node_has_heard_the_others() -> None:
    lines = run(
        """
        a = ClusterManager(node={"name": "a"}, membership={"heartbeat_interval_s": 0.1}, admin={"socket": ""}, cluster={"name": f"w{os.getpid()}"}); a.start()
        print(a.is_ready, a.wait_ready(0.0), a.wait_ready(), a.is_ready)
        from twisted.internet import reactor
        from twisted.internet.threads import blockingCallFromThread
        try: blockingCallFromThread(reactor, a.wait_ready)
        except LocalError as error: print("would block the reactor" in str(error))
        """
    )
    assert lines == ["False False True True", "True"]


def test_start_in_a_plain_program_blocks_until_it_listens_and_the_program_ends_when_it_wants() -> None:
    began = time.monotonic()
    lines = run(
        """
        a = cluster("a")
        assert a.start().called
        print(a.members[0].port > 0, a.is_ready)
        import socket, threading
        socket.create_connection(("127.0.0.1", a.members[0].port)).close()
        print([thread.name for thread in threading.enumerate() if thread.daemon])
        """
    )
    assert lines == ["True True", "['caterwaul-reactor']"]
    assert time.monotonic() - began < 10


def test_the_reactors_timers_do_not_follow_the_wall_clock() -> None:
    assert run('cluster("a").start(); from twisted.internet import reactor; print(reactor.seconds is time.monotonic)') == ["True"]


def test_several_nodes_share_the_one_reactor_and_stop_one_by_one() -> None:
    lines = run(
        """
        a, b = cluster("a"), cluster("b")
        a.start(); b.start()
        a.stop()
        print(a.members[0].name, b.statistics()["node"]["ready"])
        try: a.start()
        except LocalError as error: print(error)
        """
    )
    assert lines == ["a True", "this ClusterManager was started before; make another to start again"]


def test_a_port_that_is_taken_is_named_with_its_setting() -> None:
    lines = run(
        """
        a = cluster("a"); a.start()
        try: cluster("b", port=a.members[0].port).start()
        except LocalError as error: print("node.port" in str(error), str(a.members[0].port) in str(error))
        """
    )
    assert lines == ["True True"]


def test_in_a_twisted_program_nothing_blocks_and_leaving_is_part_of_its_shutdown() -> None:
    lines = run(
        """
        from twisted.internet import reactor, task
        a = cluster("a")
        async def main():
            started = a.start()
            await started
            print(a.members[0].name, reactor.seconds() > 0)
            task.deferLater(reactor, 0.1, reactor.stop)
        from twisted.internet.defer import Deferred
        reactor.callWhenRunning(lambda: Deferred.fromCoroutine(main()))
        reactor.addSystemEventTrigger("after", "shutdown", lambda: print("left:", a._node._stopped.called))
        reactor.run()
        """
    )
    assert lines == ["a True", "left: True"]


def test_another_thread_of_a_twisted_program_blocks_until_it_is_done() -> None:
    lines = run(
        """
        from twisted.internet import reactor, threads
        a = cluster("a")
        def elsewhere():
            a.start()
            print(a.members[0].name)
            a.stop()
        reactor.callWhenRunning(lambda: threads.deferToThread(elsewhere).addBoth(lambda result: (print(result), reactor.stop())))
        reactor.run()
        """
    )
    assert lines == ["a", "None"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_told_to_start_after_the_fork() -> None:
    lines = run(
        """
        import warnings; warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and newer warn of forking with threads
        a = cluster("a"); a.start()
        sys.stdout.flush()
        child = os.fork()
        if not child:
            for use in (a.manager, lambda: a.members, a.stop, a.start, cluster("b").start):
                try: use(); print("worked")
                except LocalError as error: print("after the fork" in str(error))
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(child, 0)
        print(a.is_ready)
        """
    )
    assert lines == ["True"] * 6


def test_a_fork_before_the_start_is_no_trouble() -> None:
    lines = run(
        """
        a = cluster("a")
        child = os.fork()
        a.start()
        if child: os.waitpid(child, 0)
        print(a.members[0].name, flush=True)
        """
    )
    assert lines == ["a", "a"]


def test_interrupting_a_program_ends_it_in_good_order(tmp_path: Path) -> None:
    program = HEAD + 'a = cluster("a"); a.start()\ntry: print("up", flush=True); time.sleep(60)\nexcept KeyboardInterrupt: print("bye")'
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=20)
    assert (out, error, process.returncode) == ("bye\n", "", 0)


def test_a_django_project_ends_all_other_sessions_of_a_user() -> None:
    lines = run(
        """
        from django.conf import settings
        settings.configure(CATERWAUL={"node": {"name": "a"}, "membership": {"discovery": []}, "admin": {"socket": ""}}, SESSION_ENGINE="caterwaul.managers.web.django")
        from caterwaul.managers.web.django import SessionStore, the_manager
        stores = [SessionStore() for _ in range(3)]
        for store, user in zip(stores, ["7", "7", "8"]):
            store.principal = user
            store.save()
        the_manager().end_all("7", but=stores[0].underneath).wait()
        print([store.exists(store.session_key) for store in stores])
        """
    )
    assert lines == ["[True, False, True]"]
