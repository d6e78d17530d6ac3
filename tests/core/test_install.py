"""What `make` installs with comes from where pip's settings say."""

from install import settings


def test_pips_settings_are_uvs_and_the_environment_wins() -> None:
    listed = (
        ":env:.find-links='/near /far'\n"
        "download.index-url='https://of.another.command/simple'\n"
        "global.extra-index-url='file:///one file:///two'\n"
        "global.find-links='/elsewhere'\n"
        "global.index-url='https://of.all/simple'\n"
        "install.index-url='https://of.installs/simple'\n"
        "install.timeout='60'\n"
    )
    assert settings(listed) == {
        "UV_DEFAULT_INDEX": "https://of.installs/simple",
        "UV_FIND_LINKS": "/near,/far",
        "UV_INDEX": "file:///one file:///two",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
