"""What setup.cfg cannot say: the description for the index, where nothing lies beside README.md."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def described() -> str:
    """Return README.md with links and pictures that lead to the documentation and the sources."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    metadata = config["metadata"]
    links = dict(line.split(" = ") for line in metadata["project_urls"].split("\n") if line)
    pages, source = f"{links['Documentation']}en/latest/", f"{links['Source']}/blob/main/"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/([\w-]+)\.md", rf"]({pages}\1.html", text)
    text = re.sub(r'(\(|(?:src|srcset)=")docs/([\w-]+\.(?:svg|png))', rf"\1{pages}_images/\2", text)
    return re.sub(r"\]\(([A-Z]+\.md)", rf"]({source}\1", text)


setup(long_description=described())
