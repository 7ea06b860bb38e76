#!/usr/bin/env python3
"""Writes the goldens of the chat template interpreter: what Jinja2, set up as Hugging Face does, makes of
tests/text/data/jinja_expressions.txt and of every template of tests/text/data/chat_templates with every conversation.

usage: python3 -m venv /some/venv && /some/venv/bin/pip install jinja2==3.1.6
       /some/venv/bin/python tests/text/make_template_goldens.py
"""
import datetime
import json
import pathlib
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

DATA = pathlib.Path(__file__).parent / "data"
NOW = datetime.datetime(2025, 7, 9, 14, 5, 7)


class Generation(jinja2.ext.Extension):
    """The tag that marks what the assistant wrote; it passes its body through."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    def body(self, caller):
        return caller()


class Raised(jinja2.exceptions.TemplateError):
    pass


class Dict:
    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)


class Namespace(jinja2.utils.Namespace):
    def __init__(*args, **kwargs):
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            Namespace.check(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name, value):
        Namespace.check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def check(name):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(name)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[Generation, jinja2.ext.loopcontrols])

    def raise_exception(message):
        raise Raised(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env.filters["tojson"] = tojson
    env.globals.update(raise_exception=raise_exception, strftime_now=NOW.strftime, dict=Dict(), namespace=Namespace)
    return env


def render(env, template, context):
    try:
        return {"out": env.from_string(template).render(**json.loads(json.dumps(context)))}
    except Raised as error:
        return {"error": "raised", "detail": str(error.message)}
    except (jinja2.exceptions.TemplateSyntaxError, SyntaxError):
        return {"error": "syntax"}
    except jinja2.exceptions.SecurityError:
        return {"error": "security"}
    except jinja2.exceptions.UndefinedError as error:
        return {"error": "undefined", "detail": str(error.message)}
    except Exception as error:  # what the template did to Python
        return {"error": "runtime", "python": type(error).__name__}


EXPRESSION_CONTEXT = {
    "messages": [
        {"role": "system", "content": " Be brief.\n"},
        {"role": "user", "content": "Héllo <b>\"wörld\"</b> 👍"},
        {"role": "assistant", "content": "日本語"},
    ],
    "nested": {"a": {"b": {"c": [1, 2.5, None, True]}}, "z": {}},
    "bignum": 1 << 40,
    "float_value": 0.1,
    "unicode": "naïve Ünïcödé 日本 👍",
    "flag": True,
    "nothing": None,
    "empty_list": [],
    "text": "\nline one\n\n  line two\tend <tag>\n",
}


def template_of(line):
    if not line.startswith("%%"):
        return "{{ " + line + " }}"
    text = line[2:].replace("\\\\", "\0").replace("\\n", "\n").replace("\\r", "\r").replace("\\u3000", "\u3000")
    return text.replace("\0", "\\")


def fnv(texts):
    value = 0xCBF29CE484222325
    for byte in "\n".join(texts).encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def unicode_digests():
    """One digest for each str method over every code point: an exhaustive test that needs no table."""
    points = [chr(c) for c in range(1, 0x110000) if not 0xD800 <= c < 0xE000]
    convert = ["upper", "lower", "title", "capitalize", "swapcase"]
    ask = ["isalpha", "isdecimal", "isdigit", "isnumeric", "isspace", "islower", "isupper", "istitle", "isprintable",
           "isalnum"]
    out = {name: fnv([getattr(c, name)() for c in points]) for name in convert}
    out.update({name: fnv(["1" if getattr(c, name)() else "0" for c in points]) for name in ask})
    return out


def main():
    env = environment()
    lines = (DATA / "jinja_expressions.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("# ") and line != "#"]
    expressions = [{"t": template_of(line), **render(env, template_of(line), EXPRESSION_CONTEXT)} for line in lines]
    conversations = json.loads((DATA / "conversations.json").read_text(encoding="utf-8"))
    chats = {}
    for path in sorted((DATA / "chat_templates").glob("*.jinja")):
        text = path.read_text(encoding="utf-8")
        base = {"bos_token": "<s>", "eos_token": "</s>"}
        chats[path.stem] = {name: render(env, text, {**base, **context}) for name, context in conversations.items()}
    # Texts that several templates share are stored once.
    golden = {
        "note": "Written by tests/text/make_template_goldens.py with Jinja2 " + jinja2.__version__,
        "context": EXPRESSION_CONTEXT,
        "expressions": expressions,
        "chats": chats,
        "unicode": unicode_digests(),
    }
    out = DATA / "template_goldens.json"
    out.write_text(json.dumps(golden, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    rendered = [r for c in chats.values() for r in c.values()]
    print(f"{len(expressions)} expressions ({sum('error' in e for e in expressions)} errors), {len(chats)} templates x "
          f"{len(conversations)} conversations = {len(rendered)} ({sum('error' in r for r in rendered)} errors), "
          f"{out.stat().st_size} bytes")
    if "-v" in sys.argv:
        for name, chat in chats.items():
            print(name, {k: v.get("detail", v.get("python", v["error"])) for k, v in chat.items() if "error" in v})


if __name__ == "__main__":
    main()
