"""docs/messages/ holds every message that a user can meet, and none that the code does not have."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs" / "messages").glob("*.md"))
#: Where the loss raises, and where the trainer does.
LOSS = [p for p in (ROOT / "cac_ext").glob("*.py") if p.name not in ("reference.py", "__init__.py")]
TRAINER = sorted((ROOT / "cac_ext" / "train").rglob("*.py"))
KERNELS = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".cu")]
USER_ERRORS = {"UserError", "ConfigError", "DataError", "CheckpointError", "NonFiniteError"}
ARGUMENT_ERRORS = {"ValueError", "TypeError", "RuntimeError", "ImportError"}
CHECK = r"TORCH_CHECK_(?:VALUE|TYPE|NOT_IMPLEMENTED)|(?<!void )\brequire"
GAP = "…"  # what a message inserts


def text_of(node: ast.expr, constants: dict[str, str]) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else GAP
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part, constants) for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left, constants) + text_of(node.right, constants)
    if isinstance(node, ast.Name):
        return constants.get(node.id, GAP)
    return GAP


def texts_in(path: Path) -> Iterator[tuple[str, str]]:
    """Each text of a Python file, with the name of what is called with it first, or ""."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = {
        target.id: text_of(node.value, {})
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            yield ast.unparse(node.func).split(".")[-1], text_of(node.args[0], constants)
        if isinstance(node, ast.JoinedStr | ast.BinOp | ast.Constant):
            yield "", text_of(node, constants)


def arguments(text: str) -> list[str]:
    """The arguments of a call in C++, from behind its parenthesis."""
    found, depth, start = [], 0, 0
    for token in re.finditer(r'"(?:\\.|[^"\\])*"|[(){}\[\],;]', text):
        sign = token.group()
        if sign in ("(", "{", "["):
            depth += 1
        elif sign in (")", "}", "]") and depth:
            depth -= 1
        elif sign in (",", ")") and not depth:
            found.append(text[start : token.start()])
            start = token.end()
            if sign == ")":
                return found
    raise ValueError(f"no call: {text[:50]}")


def checks_in(path: Path) -> Iterator[str]:
    """The message of each check of a C++ file."""
    text = path.read_text(encoding="utf-8")
    for call in re.finditer(rf"(?:{CHECK})\(", text):
        message = ""
        for part in arguments(text[call.end() :])[1:]:
            pieces = re.findall(r'"((?:\\.|[^"\\])*)"', part)
            between = re.sub(r'"(?:\\.|[^"\\])*"', "", part).strip()
            message += "".join(pieces) + (GAP if between else "")
        yield message


def shown(text: str) -> str:
    return re.sub(f"{GAP}+", GAP, " ".join(text.split()))


def documented() -> list[str]:
    rows = [line for page in PAGES for line in page.read_text(encoding="utf-8").splitlines()]
    return [
        message
        for row in rows
        if row.startswith("| `")
        for message in re.findall(r"`([^`]+)`", row.split(" | ")[0])
    ]


def pattern(message: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(piece.strip()) for piece in message.split(GAP)), re.S)


@cache
def texts_of_the_code() -> tuple[set[str], set[str]]:
    """Every text, and the messages among them that must be documented."""
    checks = {shown(message) for path in KERNELS for message in checks_in(path)}
    texts, raised = set(checks), set(checks)
    for paths, names in ((LOSS, ARGUMENT_ERRORS), (TRAINER, USER_ERRORS | {"warn"})):
        for path in paths:
            for called_by, text in texts_in(path):
                texts.add(shown(text))
                if called_by in names:
                    raised.add(shown(text))
    # What begins with a gap and a full stop adds a sentence to a message that is documented itself.
    return texts, {
        m for m in raised if len(m.replace(GAP, "")) > 10 and not m.startswith(f"{GAP}.")
    }


def test_documented_messages_are_those_of_the_code() -> None:
    texts, _ = texts_of_the_code()
    messages = documented()
    assert len(messages) > 200
    short = [message for message in messages if len(message.replace(GAP, "").strip()) < 8]
    assert not short, "too short to find by"
    gone = [m for m in messages if not any(pattern(m).match(text) for text in texts)]
    assert not gone, "not in the code:\n" + "\n".join(gone)


def test_every_message_is_documented() -> None:
    _, raised = texts_of_the_code()
    patterns = [pattern(message) for message in documented()]
    missing = sorted(m for m in raised if not any(p.match(m) for p in patterns))
    assert not missing, "name them in docs/messages/:\n" + "\n".join(missing)


def test_a_message_of_c_is_read_as_it_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.cpp"
    path.write_text('TORCH_CHECK_VALUE(f(a, b) == 2, name, " must be (2), "\n  "not ", x, ".");')
    assert list(checks_in(path)) == [f"{GAP} must be (2), not {GAP}."]
