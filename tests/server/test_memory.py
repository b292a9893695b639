"""starlight.server.memory: once for each crowd that has gone. (test_faults_process has the memory.)"""

from __future__ import annotations

from starlight.server.memory import CROWD, Trimmer, trim


def test_once_for_each_crowd_that_has_gone():
    acts: list[int] = []
    trimmer = Trimmer(lambda: acts.append(1))
    for present in (0, 10, CROWD - 1, 0, CROWD, CROWD // 2, CROWD // 4 + 1):
        trimmer.look(present)
    assert acts == []
    for present in (CROWD // 4, 5, 0, 100):
        trimmer.look(present)
    assert acts == [1]
    for present in (2 * CROWD, 0, 0):
        trimmer.look(present)
    assert acts == [1, 1]


def test_the_c_library_is_asked_or_nothing_happens():
    trim()
