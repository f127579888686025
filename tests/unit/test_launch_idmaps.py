"""Id maps: root never maps 0 to 0, a user maps 0 to itself."""

from __future__ import annotations

from pathlib import Path

from nsagent.launch import idmaps


def test_ranges_of_root() -> None:
    text = "alice:100000:65536\nroot:500000:65536\nroot:1:65536\n"
    assert idmaps.parse_subordinate(text, "root", 0) == 500000
    assert idmaps.parse_subordinate("0:300000:65536", "root", 0) == 300000
    for unusable in ("", "root:5:100", "root:0:65536", "root:x:65536", "root:5", "alice:100000:65536"):
        assert idmaps.parse_subordinate(unusable, "root", 0) is None


def test_root_takes_its_range_or_the_fallback(tmp_path: Path) -> None:
    assert idmaps.choose(0, 0, str(tmp_path)) == idmaps.IdMaps(100000, 100000, 65536, True)
    (tmp_path / "subuid").write_text("root:200000:65536\n")
    (tmp_path / "subgid").write_text("root:300000:65536\n")
    assert idmaps.choose(0, 0, str(tmp_path)) == idmaps.IdMaps(200000, 300000, 65536, True)


def test_a_user_is_root_of_itself_alone(tmp_path: Path) -> None:
    assert idmaps.choose(1000, 1001, str(tmp_path)) == idmaps.IdMaps(1000, 1001, 1, False)
