"""Templates that mean harm: each is stopped within two seconds and 512 MB, with a reason."""

import json
import subprocess
import sys

import pytest

from seqloom.core.errors import DataError
from seqloom.data import template_process
from seqloom.data.chat_template import ChatTemplate

DOUBLE = "{% set a = namespace(x=1, y=1) %}{% for i in range(60) %}{% set a.x = [a.x, a.x] %}{% endfor %}"
DEEP = "{% set a = namespace(x=1) %}{% for i in range(90000) %}{% set a.x = [a.x] %}{% endfor %}"
GROW = "{% set a = namespace(x='aa') %}{% for i in range(60) %}{% set a.x = "
STEPS, TIME, PROCESS = "more than 2,000,000 steps", r"more than 0\.5 s", "MiB of memory"
STOPPED = f"{TIME}|{PROCESS}"

HOSTILE = {
    "loops in loops": ("{% for i in range(99999) %}" * 4 + "x" + "{% endfor %}" * 4, STEPS),
    "a long range": ("{% for i in range(10**9) %}x{% endfor %}", "range has too many elements"),
    "a long text": ("{{ 'x' * 10**9 }}", STEPS),
    "a padded text": ("{{ '%1000000000s'|format('x') }}", STEPS),
    "a padded number": ("{{ '%01000000000d'|format(1) }}", STEPS),
    "a padded date": ("{{ strftime_now('%1000000000d') }}", "not a form of a date"),
    "a padded format": ("{{ '{:1000000000}'.format(1) }}", "the method 'format'"),
    "wide batches": ("{{ messages|batch(10**9, 'x')|list }}", STEPS),
    "many slices": ("{{ messages|slice(10**9)|list }}", STEPS),
    "a wide indentation": ("{{ ('a\n' * 9000)|indent(10**9) }}", STEPS),
    "wide JSON": ("{{ messages|tojson(indent=10**9) }}", "an indentation of more than 64"),
    "separators of JSON": (
        GROW + "messages|tojson(separators=(a.x, a.x)) %}{% endfor %}{{ a.x }}",
        STEPS + "|" + STOPPED,
    ),
    "JSON of JSON": (
        "{% set a = namespace(x='\"') %}{% for i in range(60) %}{% set a.x = a.x|tojson %}{% endfor %}",
        STEPS,
    ),
    "lorem ipsum": ("{{ lipsum(100000) }}", "the name 'lipsum'"),
    "doubled texts": (GROW + "a.x ~ a.x %}{% endfor %}{{ a.x }}", STEPS),
    "doubled blocks": (GROW + "a.x %}{% set b %}{{ a.x }}{{ a.x }}{% endset %}{% set a.x = b %}{% endfor %}", STEPS),
    "doubled by a macro": ("{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}" + GROW + "m(a.x) %}{% endfor %}", STEPS),
    "replaced": (GROW + "a.x.replace('', a.x) %}{% endfor %}", STEPS),
    "joined": (GROW + "a.x.join([a.x, a.x]) %}{% endfor %}", STEPS),
    "a macro that calls itself twice": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% else %}x{% endif %}{% endmacro %}{{ m(60) }}",
        STEPS,
    ),
    "a macro without an end": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion limit"),
    "a loop that calls itself": ("{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}", "recursion limit"),
    "doubled lists printed": (DOUBLE + "{{ a.x }}", STOPPED),
    "doubled lists as JSON": (DOUBLE + "{{ a.x|tojson }}", STOPPED),
    "doubled lists compared": (
        DOUBLE.replace("%}{% endfor", "%}{% set a.y = [a.y, a.y] %}{% endfor") + "{{ a.x == a.y }}",
        STOPPED,
    ),
    "doubled objects": (DOUBLE.replace("[a.x, a.x]", "{'a': a.x, 'b': a.x}") + "{{ a.x }}", STOPPED),
    "a namespace in itself": ("{% set a = namespace() %}{% set a.x = a %}{{ a }}", STOPPED),
    "a namespace in itself as JSON": ("{% set a = namespace() %}{% set a.x = [a] %}{{ a|tojson }}", STOPPED),
    "nested lists": (DEEP + "{{ a.x }}", STOPPED),
    "nested lists as JSON": (DEEP + "{{ a.x|tojson }}", STOPPED),
    "nested namespaces": (DEEP.replace("[a.x]", "namespace(y=a.x)"), STOPPED),
    "nested slices": (
        DEEP.replace("[a.x]", "messages[0:] if i == 0 else a.x[0:]") + "{{ a.x }}",
        STOPPED + "|" + STEPS,
    ),
    "brackets": ("{{ " + "(" * 60_000 + "1" + ")" * 60_000 + " }}", "recursion limit"),
    "blocks in blocks": ("{% if 1 %}" * 13_000, "recursion limit"),
    "dots": ("{% for a in b" + ".b" * 60_000 + " %}{% endfor %}", STOPPED + "|recursion limit|undefined"),
    "texts without an end": ("{{ " + "'a" * 60_001, "'{{' without an end"),
    "comments without an end": ("{#" * 60_000, "a comment without an end"),
    "a large template": ("a" * (50 << 20), "52,428,800 characters; at most 131,072"),
    "a class": ("{{ ''.__class__ }}", "the name '__class__'"),
    "a class by its entry": ("{{ ''['__class__']['__mro__'] }}", "'__class__' is an inside of Python"),
    "a class by a filter": ("{{ ''|attr('__class__') }}", "the filter 'attr'"),
    "globals of a function": ("{{ raise_exception.__globals__ }}", "the name '__globals__'"),
    "another file": ("{% include '/etc/passwd' %}", "the tag 'include'"),
    "macros of another file": ("{% import 'os' as os %}", "the tag 'import'"),
    "names of another file": ("{% from 'os' import path %}", "the tag 'from'"),
    "a parent": ("{% extends 'x' %}", "the tag 'extends'"),
}

CHILD = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))
from seqloom.core.errors import DataError
from seqloom.data.chat_template import ChatTemplate

def seconds():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

for source in json.load(sys.stdin):
    start = seconds()
    try:
        text = ChatTemplate(source, {}).render([{"role": "user", "content": "hi"}])
        print(json.dumps([seconds() - start, f"rendered {len(text)} characters"]))
    except DataError as error:
        print(json.dumps([seconds() - start, str(error)]))
assert "torch" not in sys.modules
"""


@pytest.mark.full
def test_each_is_refused_in_time_and_in_memory() -> None:
    sources = json.dumps([source for source, _ in HOSTILE.values()])
    child = subprocess.run([sys.executable, "-c", CHILD], input=sources, capture_output=True, text=True, timeout=110)
    assert child.stderr == ""
    results = [json.loads(line) for line in child.stdout.splitlines()]
    for (name, (_, reason)), (seconds, words) in zip(HOSTILE.items(), results, strict=True):
        assert seconds < 4, name
        with pytest.raises(DataError, match=reason):
            raise DataError(f"{name}: {words}")


def test_the_process_is_replaced_when_it_is_lost() -> None:
    good, bad = ChatTemplate("good {{ messages|length }}", {}), ChatTemplate(HOSTILE["nested lists"][0], {})
    for _ in range(2):
        assert good.render([]) == "good 0"
        with pytest.raises(DataError, match=PROCESS):
            bad.render([])
    assert template_process._running is None
    assert good.render([]) == "good 0"
    assert template_process._running is not None
    template_process._running.kill()
    with pytest.raises(DataError, match="the chat template cannot be rendered"):
        good.render([])
    assert good.render([]) == "good 0"


def test_an_interrupted_answer_is_not_taken_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate("{{ messages|length }}", {})

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(template_process, "_receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            template.render([])
    assert template.render([{"role": "user", "content": ""}] * 3) == "3"


def test_more_templates_than_the_process_keeps() -> None:
    templates = [ChatTemplate(f"{number}", {}) for number in range(40)]
    assert [template.render([]) for template in templates] == [str(number) for number in range(40)]


def test_threads_and_forked_children_get_their_own_answers() -> None:
    code = """
import os, threading
from seqloom.data.chat_template import ChatTemplate
template = ChatTemplate("{{ messages[0].content }}", {})
found = {}
def ask(number):
    for _ in range(20):
        text = template.render([{"role": "user", "content": str(number)}])
        found.setdefault(number, set()).add(text)
threads = [threading.Thread(target=ask, args=[number]) for number in range(4)]
[thread.start() for thread in threads]
child = os.fork()
if child == 0:
    ask(9)
    os._exit(0 if found[9] == {"9"} else 1)
ask(5)
[thread.join() for thread in threads]
print(os.waitpid(child, 0)[1], found == {number: {str(number)} for number in (0, 1, 2, 3, 5)})
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.stdout.strip(), result.stderr) == ("0 True", "")
