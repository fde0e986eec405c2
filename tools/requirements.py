"""Prints the requirements of pyproject.toml, one per line; those of the extras named as arguments too."""

import pathlib
import sys
import tomllib


def main() -> None:
    text = pathlib.Path(__file__).parent.parent.joinpath("pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    extras = [project["optional-dependencies"][name] for name in sys.argv[1:]]
    for requirement in sum(extras, project["dependencies"]):
        print(requirement)


if __name__ == "__main__":
    main()
