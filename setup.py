"""Packaging: the ``elkeid`` package, its data, and the twistd plugin."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="elkeid",
    version="0.1.0",
    description="The open back end for host security agents, on Twisted",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The plugin folder belongs to Twisted: a namespace without __init__.py of ours.
    packages=[*find_packages(include=["elkeid", "elkeid.*"]), "twisted.plugins"],
    package_data={
        "elkeid": ["py.typed"],
        "elkeid.web": ["api_page.html"],
        "elkeid.fleet": ["sample_events.jsonl"],
        "elkeid.manager": ["migrations/*.py", "migrations/versions/*.py", "migrations/*.mako"],
    },
    install_requires=[
        "twisted[tls]>=24.10,<27",
        "klein>=24.8",
        "pyopenssl>=25.0,<27",
        "service-identity>=24.2",
        "cryptography>=44",
        "txaio>=23.6",
        "autobahn>=24.4",
        "kafka-python>=3.0.12,<3.1",
        "hpack>=4.1,<5",
        "cramjam>=2.10,<3",
        "crc32c>=2.7",
        'backports.zstd>=1.0; python_version < "3.14"',
        "attrs>=24.2",
        "msgspec>=0.19",
        "sqlalchemy>=2.0.36,<3",
        "alembic>=1.14",
        "psycopg[binary]>=3.2,<4",
        "argon2-cffi>=23.1",
        "google-re2>=1.1",
        "prometheus-client>=0.21",
        "click>=8.1",
    ],
    extras_require={
        "test": [
            "pytest>=8.3",
            "pytest-twisted>=1.14",
            "hypothesis>=6.115",
            "treq>=24.9",
            "h2>=4.1,<5",
            "jsonschema-rs>=0.40,<1",
            "schemathesis>=4.32,<5",
            "ruff==0.17.6",
            "mypy==2.4.1",
            "mypy-zope==1.0.17",
        ]
    },
    entry_points={"console_scripts": ["elkeid=elkeid.cli:main"]},
    zip_safe=False,
)
