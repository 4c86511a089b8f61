"""Makes the page's libraries anew from the packages of npm: exact versions, checked by digest, one ES module each.

    python scripts/vendor_web.py            fetches, bundles and writes src/qwenkit/web/static/vendor and tests/data/axe

Needs npm and Linux on x86-64, for the bundler. Whoever uses or tests the page needs neither: the results are in the repository.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
VENDOR = ROOT / "src/qwenkit/web/static/vendor"
AXE = ROOT / "tests/data/axe"
FONT_LICENCE = VENDOR / "licences/katex-fonts.txt"
"""Kept as it is: the package names the licence of its fonts only inside them."""


@dataclass(frozen=True)
class Package:
    """A package of npm: its name, version, digest, licence and the file with the licence's text."""

    name: str
    version: str
    sha512: str
    licence: str = "MIT"
    licence_file: str = "LICENSE"

    @property
    def source(self) -> str:
        return f"https://www.npmjs.com/package/{self.name}/v/{self.version}"


MARKDOWN = (
    Package(
        "markdown-it",
        "15.0.3",
        "+Az7Ojz3iRGu8KYMvJ6xVhvrxP3eE+vEtJX75Ow88XBpcQNV/0lGX5ZynIIBftREo4DC2jsveAMDaeltmm8QvQ==",
    ),
    Package(
        "markdown-it-cjk-friendly",
        "3.0.0",
        "y4OkqwenFXmb1i3w7qfh9E60qNX6U4KzECke8N/7io9SARFSvbR/wde0q/l6/Az9doieLOIw7ZsbDSgl27DR4g==",
    ),
    Package(
        "linkify-it",
        "6.1.0",
        "wJ/TwpSDTLepCrQoYWYIExIKg5Zchex2Nn5yk2mFnB+6PtdkHtyLx742md9csRjjOnGkKIS/RrbY7l8D6gT9Vw==",
    ),
    Package(
        "mdurl",
        "2.1.0",
        "1+HBaOx0zi/dQWht8rNv9MYf9qqpqL/kxI0hXImU6Y547zM6Sni8BQibt7ifgMcYtQg41ao3Ivd6cnSM86inpg==",
    ),
    Package(
        "uc.micro",
        "3.0.0",
        "U3PppEkleoTnIfi8BozMx3yju3qc/L6SwqWo2Sw+54PX+PX0q9I+r1Um5HCmqD7n9VDX5/v3vQH/AjA6deDdtw==",
        licence_file="LICENSE.txt",
    ),
    Package(
        "entities",
        "8.1.0",
        "kxL7msIffSuh9aaFAMD7rxAIuTRMAHMeBtgHW2yUdWw732ZNh4MehkF2gdjvtdmikkaIP9bFDDJOPlsvm7avrA==",
        licence="BSD-2-Clause",
    ),
    Package(
        "punycode.js",
        "2.3.1",
        "uxFIHU0YlHYhDQtV4R9J6a52SLx28BCjT+4ieh7IGbgwVJWO+km431c4yRlREUAsAmt/uMjQUyQHNEPf0M39CA==",
        licence_file="LICENSE-MIT.txt",
    ),
    Package(
        "get-east-asian-width",
        "1.6.0",
        "QRbvDIbx6YklUe6RxeTeleMR0yv3cYH6PsPZHcnVn7xv7zO1BHN8r0XETu8n6Ye3Q+ahtSarc3WgtNWmehIBfA==",
        licence_file="license",
    ),
)
PURIFY = Package(
    "dompurify",
    "3.4.18",
    "ofe3wI/uNm68HInABYFJYqQxRw1EaKAjNdrFVKqjUY+UZurvNd2L/HuQe097s/4RivWiZyP6tT7aoT8atjfhwg==",
    licence="Apache-2.0 or MPL-2.0",
)
HIGHLIGHT = Package(
    "highlight.js",
    "11.12.0",
    "nbfWpyRMcMrPMmDwJB+dhX/eiaPKtc2RB+0QZskqJ3WjRA/FDS0e9hZrx8EC/lbEv8gXy98FcDbNa/dspAaJMg==",
    licence="BSD-3-Clause",
)
KATEX = Package(
    "katex",
    "0.19.1",
    "jG8uKntjSEcm2EpQOh0XturpPuuC9r3Sq5HLHdsFdWZT27E672SF19QEi+of0/YeOy15lDgRhKvr5614uRrEfA==",
)
AXE_CORE = Package(
    "axe-core",
    "4.14.1",
    "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
    licence="MPL-2.0",
)
BUNDLER = Package(
    "@esbuild/linux-x64",
    "0.28.2",
    "4xTZr1FUmSoQW4XIWmit3tzQrUTZM+N3P0XV8xROKYF50XfI7xeO90+1bZvNwxIufQ9hDQVRJH5YhgPVF8A/HQ==",
)

_LANGUAGES = """bash c clojure cmake cpp csharp css dart diff dockerfile elixir erlang fortran go graphql haskell http ini java
javascript json julia kotlin latex less lisp lua makefile markdown matlab nginx objectivec ocaml perl php plaintext
powershell protobuf python python-repl r ruby rust scala scss shell sql swift typescript vbnet verilog vim wasm x86asm
xml yaml"""

_HIGHLIGHT_ENTRY = 'import hljs from "highlight.js/lib/core";\n' + "".join(
    f'import l{i} from "highlight.js/lib/languages/{name}";\nhljs.registerLanguage("{name}", l{i});\n'
    for i, name in enumerate(_LANGUAGES.split())
)


@dataclass(frozen=True)
class Library:
    """A module of the page: the file, what it is bundled from, and the packages within, the main one first."""

    file: str
    entry: str
    packages: tuple[Package, ...]


LIBRARIES = (
    Library(
        "markdown-it.js",
        'export { default } from "markdown-it";\nexport { default as cjkFriendly } from "markdown-it-cjk-friendly";\n',
        MARKDOWN,
    ),
    Library("dompurify.js", 'export { default } from "dompurify";\n', (PURIFY,)),
    Library("highlight.js", f"{_HIGHLIGHT_ENTRY}export default hljs;\n", (HIGHLIGHT,)),
    Library("katex.js", 'export { default } from "katex";\n', (KATEX,)),
)


def fetch(package: Package, modules: Path) -> Path:
    """The unpacked package, below ``modules``."""
    target = modules / package.name
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "npm",
            "pack",
            "--silent",
            "--pack-destination",
            folder,
            f"{package.name}@{package.version}",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        archive = next(Path(folder).glob("*.tgz"))
        if base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() != package.sha512:
            raise SystemExit(f"{package.name} {package.version} is not the package that was expected")
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                member.name = member.name.partition("/")[2]  # the one folder of such an archive
                if member.name:
                    tar.extract(member, target, filter="data")
    return target


def bundle(library: Library, modules: Path, bundler: Path) -> None:
    """Writes the library as one small module without anything of ours in it."""
    entry = modules.parent / f"entry-{library.file}"
    entry.write_text(library.entry, encoding="utf-8")
    command = [str(bundler), str(entry), "--bundle", "--minify", "--format=esm", "--target=es2022"]
    options = ["--charset=utf8", "--legal-comments=inline", "--log-level=error"]
    subprocess.run([*command, *options, f"--outfile={VENDOR / library.file}"], check=True)


def write_formula_styles(katex: Path) -> None:
    """KaTeX's style sheet and its fonts in the one form that browsers of today want."""
    styles = (katex / "dist/katex.min.css").read_text(encoding="utf-8")
    styles = re.sub(r',url\(fonts/[^)]*\.(?:woff|ttf)\) ?format\("[a-z]+"\)', "", styles)
    (VENDOR / "katex.css").write_text(styles, encoding="utf-8")
    (VENDOR / "fonts").mkdir()
    for font in sorted((katex / "dist/fonts").glob("*.woff2")):
        shutil.copyfile(font, VENDOR / "fonts" / font.name)


def copy_licences(packages: tuple[Package, ...], modules: Path, target: Path) -> None:
    """The licence's text of each package."""
    target.mkdir(parents=True, exist_ok=True)
    for package in packages:
        shutil.copyfile(modules / package.name / package.licence_file, target / f"{package.name}.txt")


def write_notice() -> None:
    """Says what the folder holds, with versions, licences and digests."""
    lines = [
        "# Libraries of the page",
        "",
        "Made from npm's packages by `scripts/vendor_web.py`, unchanged but for bundling; the licences are in `licences`.",
        "",
        "| file | package | version | licence | source |",
        "|---|---|---|---|---|",
    ]
    for library in LIBRARIES:
        for package in library.packages:
            file = library.file if package != KATEX else f"{library.file}, katex.css"
            facts = [file, package.name, package.version, package.licence, package.source]
            lines.append(f"| {' | '.join(facts)} |")
    fonts = ["fonts", "katex-fonts", KATEX.version, "OFL-1.1", KATEX.source]
    lines.append(f"| {' | '.join(fonts)} |")
    lines += ["", "| file | bytes | SHA-256 |", "|---|---|---|"]
    for file in sorted(path for path in VENDOR.rglob("*") if path.suffix in (".js", ".css", ".woff2")):
        data = file.read_bytes()
        name = file.relative_to(VENDOR).as_posix()
        lines.append(f"| {name} | {len(data)} | {hashlib.sha256(data).hexdigest()} |")
    (VENDOR / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Writes both folders anew."""
    with tempfile.TemporaryDirectory() as folder:
        modules = Path(folder) / "node_modules"
        bundler = fetch(BUNDLER, modules) / "bin/esbuild"
        font_licence = FONT_LICENCE.read_bytes()
        for target in (VENDOR, AXE):
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
        for library in LIBRARIES:
            for package in library.packages:
                fetch(package, modules)
            bundle(library, modules, bundler)
            copy_licences(library.packages, modules, VENDOR / "licences")
        write_formula_styles(modules / KATEX.name)
        FONT_LICENCE.write_bytes(font_licence)
        axe = fetch(AXE_CORE, modules)
        shutil.copyfile(axe / "axe.min.js", AXE / "axe.min.js")
        shutil.copyfile(axe / "LICENSE", AXE / "LICENSE")
        note = f"{AXE_CORE.name} {AXE_CORE.version}, {AXE_CORE.licence}, from {AXE_CORE.source}, by `scripts/vendor_web.py`.\n"
        (AXE / "README.md").write_text(note, encoding="utf-8")
    write_notice()


if __name__ == "__main__":
    main()
