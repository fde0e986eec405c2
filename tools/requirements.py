"""Prints the requirements of pyproject.toml, those of development included, one per line."""

import pathlib
import tomllib


def main() -> None:
    text = pathlib.Path(__file__).parent.parent.joinpath("pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["developer"]]:
        print(requirement)


if __name__ == "__main__":
    main()
