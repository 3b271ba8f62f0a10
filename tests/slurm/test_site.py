"""Where the site profile is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.config_io import ConfigError
from slurm.site import Site, read_site


def test_the_profile_is_found_where_users_keep_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RELAYWAVE_SITE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_site() == Site()
    for name in ("xdg", ".config"):
        file = tmp_path / name / "relaywave" / "site.toml"
        file.parent.mkdir(parents=True)
        file.write_text(f'partition = "{name}"\n')
    assert read_site().partition == "xdg"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert read_site().partition == ".config"
    monkeypatch.setenv("RELAYWAVE_SITE", str(tmp_path / "no.toml"))
    with pytest.raises(ConfigError, match=r"no\.toml cannot be read as a site profile"):
        read_site()


@pytest.mark.parametrize("name", ["^docker", "ib0,", "ib0 ib1", "ib0:5", "ib=0"])
def test_interfaces_are_named_exactly(name: str) -> None:
    assert Site(network_interface="=ib0,ib1").network_interface == "=ib0,ib1"
    with pytest.raises(ValueError, match=r"network_interface=.* must be exact names"):
        Site(network_interface=name)
