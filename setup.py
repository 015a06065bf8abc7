"""Everything the package says about itself comes from settings.ini, the file that nbdev reads."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
STATUSES = {"3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}
PYTHONS = ("3.10", "3.11", "3.12", "3.13")  # those that .github/workflows/tests.yml runs
# our code, and what ships with it: drawings (Twemoji, Fluent) and names (CLDR); see qks/assets/pocket_wide/LICENSES.md
LICENSES = {"apache2": "Apache-2.0 AND CC-BY-4.0 AND MIT AND Unicode-3.0"}

config = ConfigParser(delimiters=["="])
config.read(HERE / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]

# `NAME_requirements = …` in settings.ini is the extra qks[NAME]
EXTRAS = {key.removesuffix("_requirements"): settings[key].split() for key in settings if key.endswith("_requirements")}

readme = HERE / "README.md"
source = settings["git_url"]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=settings["author"],
    keywords=settings["keywords"].split(),
    license_expression=LICENSES[settings["license"]],  # instead of a "License ::" classifier: there may not be both
    license_files=["LICENSE"],
    url=source,
    project_urls={
        "Source": source,
        "Issues": f"{source}/issues",
        "Changelog": f"{source}/blob/{settings['branch']}/CHANGELOG.md",
        "Paper": "https://arxiv.org/abs/2401.01181",
    },
    classifiers=[
        f"Development Status :: {STATUSES[settings['status']]}",
        f"Intended Audience :: {settings['audience']}",
        "Intended Audience :: Education",
        f"Natural Language :: {settings['language']}",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: {version}" for version in PYTHONS),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["qks", "qks.*"]),
    package_data={"qks": ["assets/**", "py.typed", "**/*.pyi"]},
    include_package_data=False,  # the line above says it all, for the wheel and the sdist alike
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": [f"{settings['lib_name']}={settings['lib_path']}._modidx:d"],
    },
    zip_safe=False,
)
