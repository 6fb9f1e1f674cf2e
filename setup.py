"""The parts of the build that setup.cfg cannot say: two folders of the repository become parts of the package.

configs/ and pretrained/ stay at the top of the repository. In a wheel they are scnf/configs and scnf/pretrained, where
scnf.shipped finds them.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["scnf", "scnf.*"]), "scnf.configs", "scnf.pretrained"],
    package_dir={"scnf.configs": "configs", "scnf.pretrained": "pretrained"},
    package_data={
        "scnf": ["py.typed"],
        "scnf.native": ["*.cpp", "*.h"],
        "scnf.configs": ["**/*.yaml"],
        "scnf.pretrained": ["*/*"],
    },
)
