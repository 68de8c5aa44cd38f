"""
How much is there to read, how dense is it, and does each file import only what stands before it?

$ python -m lab.readability               # one row for each Python file that git tracks
$ python -m lab.readability --check=true  # exit code 1 if a bound is broken

A code line is a line on which a token starts; comments and docstrings are no code. The product is
everything but the tests; configs are settings and are not counted. By the same count nanoGPT has
8.9 tokens a code line, nanochat 9.2.
"""
from configurator import HERE, configure, fail

# --- settings ---
check = False  # end with exit code 1 if a bound is broken
configure(globals())

# isort: split
import ast
import os
import subprocess
import sys
import tokenize
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

# --- the bounds ---

COLUMNS = 100         # of the widest line
DENSE = 35            # tokens from which on a line is dense
DENSE_SHARE = 1.5     # per cent of the product's code lines that are dense
TOKENS = 11.0         # tokens a code line, over the product
TOKENS_EACH = 12.0    # and in each file of the top level and of fast/
COMMENTS = 10.0       # lines of comment in 100 of code, where a reader begins:
COMMENTED = 'model.py', 'think.py', 'train.py', 'prepare.py'
FUNCTION_LINES = 60   # of the longest function, its docstring included; a Triton kernel may be more
TOP_LINES = 3700      # of the top level, without test_smoke.py
TRAIN_LINES = 3200    # that train.py imports, besides these packages:
NOT_COUNTED = 'tasks/', 'config/', 'fast/'
README_WORDS = 1300   # outside of tables and of blocks of code
README_COLUMNS = 160

# The top level, in this order: a file imports only what stands before it, tasks/ and audio/files.
ORDER = [name + '.py' for name in (
    'configurator', 'system', 'prepare', 'model', 'checkpoint', 'transcribe', 'think', 'exam',
    'lessons', 'optimizer', 'train', 'score', 'sample')]
# What is run and never imported may also import these packages.
OPEN_TO = {
    'train.py': ('fast', 'audio'),
    'score.py': ('fast', 'audio', 'lab', 'text'),
    'sample.py': ('fast', 'audio', 'lab', 'text'),
}
CORE = 'tasks', 'fast', 'audio'
BESIDE = 'lab', 'text', 'page'  # packages that no package of the core imports


# --- counting ---

LAYOUT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENCODING, tokenize.ENDMARKER,
}


class Count(NamedTuple):
    """Of one file: lines, code lines, tokens in them, dense lines, lines of comment, lines that are
    too wide, lambdas that are bound to names, lines of the longest function"""
    lines: int
    code: int
    tokens: int
    dense: int
    comments: int
    wide: int
    lambdas: int
    longest: int

    def per_line(self):
        return self.tokens / self.code

    def in_100(self, lines):
        """So many of its lines, in 100 lines of code"""
        return 100 * lines / self.code


def is_text(statement):
    """Is this statement a string and nothing else?"""
    if not isinstance(statement, ast.Expr):
        return False
    value = statement.value
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def docstring_rows(tree):
    """The numbers of all lines that a docstring covers"""
    rows = set()
    for node in ast.walk(tree):
        body = getattr(node, 'body', None)
        if isinstance(body, list) and body and is_text(body[0]):
            rows.update(range(body[0].lineno, body[0].end_lineno + 1))
    return rows


def longest_function(tree):
    """Lines of the longest function that is no Triton kernel"""
    longest = 0
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            decorators = [ast.unparse(d) for d in node.decorator_list]
            if not any('triton' in d for d in decorators):
                longest = max(longest, node.end_lineno - node.lineno + 1)
    return longest


def count(path):
    """A Python file -> its Count"""
    with open(path, encoding='utf-8') as f:
        text = f.read()
    lines, tree = text.splitlines(), ast.parse(text)
    with open(path, 'rb') as f:
        tokens = list(tokenize.tokenize(f.readline))

    skipped = docstring_rows(tree)
    comments, per_row = 0, Counter()
    for t in tokens:
        row = t.start[0]
        if t.type == tokenize.COMMENT:
            comments += lines[row - 1].lstrip().startswith('#')
        elif t.type not in LAYOUT and row not in skipped:
            per_row[row] += 1
    assigned = [node.value for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    return Count(
        lines=len(lines),
        code=max(1, len(per_row)),
        tokens=per_row.total(),
        dense=sum(n >= DENSE for n in per_row.values()),
        comments=comments,
        wide=sum(len(line) > COLUMNS for line in lines),
        lambdas=sum(isinstance(value, ast.Lambda) for value in assigned),
        longest=longest_function(tree),
    )


def readme(text):
    """README's words outside of tables and of blocks of code, and the columns of its widest line"""
    prose = ' '.join(text.split('```')[::2])
    lines = [line for line in prose.splitlines() if not line.startswith('|')]
    return len(' '.join(lines).split()), max(map(len, text.splitlines()))


# --- imports ---

def is_run(statement):
    """Is this `if __name__ == '__main__':`?"""
    return isinstance(statement, ast.If) and '__name__' in ast.unparse(statement.test)


def names_in(statement, package):
    """What an import may mean -> dotted names; package: of the file that it stands in"""
    if isinstance(statement, ast.Import):
        return [name.name for name in statement.names]
    if not isinstance(statement, ast.ImportFrom) or not statement.module:
        return []
    module = statement.module
    if statement.level and package:
        module = f'{package}.{module}'
    return [module, *[f'{module}.{name.name}' for name in statement.names]]


def imports_of(path, files):
    """Which of the files one of them imports when it is imported itself, at its top or later. That
    a package holds it is no import of the package."""
    with open(path, encoding='utf-8') as f:
        tree = ast.parse(f.read())
    tree.body = [statement for statement in tree.body if not is_run(statement)]
    package = os.path.dirname(path).replace('/', '.')
    found = set()
    for node in ast.walk(tree):
        for name in names_in(node, package):
            place = name.replace('.', '/')
            found |= {place + '.py', place + '/__init__.py'} & files
    return found - {os.path.dirname(path) + '/__init__.py'}


def reached(graph, path):
    """All files that one file imports, itself, and what these import"""
    found, waiting = set(), [path]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += graph[path]
    return found


def misplaced(graph):
    """A sentence for each import that the layout does not allow"""
    found = []
    for path in graph:
        if '/' not in path and path not in ORDER:
            found.append(f"{path} stands at the top level, but not in the order of its files")
    for path, others in graph.items():
        package = path.partition('/')[0]
        for other in sorted(others):
            beside = other.partition('/')[0]
            if package in CORE and beside in BESIDE:
                found.append(f"{path} imports {other}, but {package}/ does without {beside}/")
            if path not in ORDER or beside in ('tasks', *OPEN_TO.get(path, ())):
                continue
            before = ORDER[:ORDER.index(path)]
            if other not in (*before, 'audio/__init__.py', 'audio/files.py'):
                found.append(f"{path} imports {other}, which does not stand before it")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        found.append(f"imports go round in a circle: {' <- '.join(e.args[1])}")
    return found


# --- what is over its bound? ---

def over_each(path, n):
    """A file of the product and its Count -> a sentence for each bound that it breaks"""
    found = []
    is_bound = '/' not in path or path.startswith('fast/')
    if is_bound and n.per_line() > TOKENS_EACH:
        found.append(f"{path} has {n.per_line():.2f} tokens a code line, over {TOKENS_EACH:g}")
    if path in COMMENTED and n.in_100(n.comments) < COMMENTS:
        found.append(f"{path} has {n.in_100(n.comments):.1f} lines of comment in 100 of code, "
                     f"under {COMMENTS:g}")
    if n.longest > FUNCTION_LINES:
        found.append(f"{path} has a function of {n.longest} lines, over {FUNCTION_LINES}")
    if n.wide:
        found.append(f"{path} has {n.wide} lines of over {COLUMNS} columns")
    if n.lambdas:
        found.append(f"{path} binds {n.lambdas} lambdas to names")
    return found


def over_all(total, top, loaded, words, columns):
    """The product's Count, lines of the top level and of what train.py imports, and readme() -> a
    sentence for each bound that is broken"""
    dense = total.in_100(total.dense)
    return [f"{what} {value:.4g} {unit}, over {bound:g}" for what, value, unit, bound in (
        ('the product has', total.per_line(), 'tokens a code line', TOKENS),
        ('in the product', dense, '% of the code lines are dense', DENSE_SHARE),
        ('the top level has', top, 'lines', TOP_LINES),
        ('train.py imports', loaded, 'lines', TRAIN_LINES),
        ('README.md has', words, 'words of prose', README_WORDS),
        ('README.md has', columns, 'columns', README_COLUMNS),
    ) if value > bound]


# --- the table ---

def show(name, n):
    print(f"{name:28} {n.lines:6} {n.code:6} {n.per_line():11.1f} {n.in_100(n.dense):5.1f}% "
          f"{n.in_100(n.comments):8.1f}% {n.longest:7} {n.wide:5} {n.lambdas:7}")


def tracked():
    """The Python files that git tracks and that are there"""
    listed = subprocess.run(['git', 'ls-files', '*.py'], capture_output=True, text=True)
    if listed.returncode:
        fail("only a clone of the repository can be counted: git knows which files are its own")
    return [path for path in listed.stdout.splitlines() if os.path.exists(path)]


def main():
    os.chdir(HERE)
    counts = {path: count(path) for path in tracked() if not path.startswith('config/')}
    product = {path: n for path, n in counts.items() if 'test' not in path}
    graph = {path: imports_of(path, set(product)) for path in product}
    total = Count(*map(sum, zip(*product.values(), strict=True)))
    top = [path for path in product if '/' not in path]
    loaded = [path for path in reached(graph, 'train.py') if not path.startswith(NOT_COUNTED)]
    top_lines, loaded_lines = (sum(counts[path].lines for path in x) for x in (top, loaded))
    with open('README.md', encoding='utf-8') as f:
        words, columns = readme(f.read())

    print(f"{'file':28} {'lines':>6} {'code':>6} {'tokens/line':>11} {'dense':>6} {'comments':>9} "
          f"{'longest':>7} {f'>{COLUMNS}':>5} {'lambdas':>7}")
    for path, n in counts.items():
        show(path, n)
    show('the product', total._replace(longest=max(n.longest for n in product.values())))
    print(f"README.md: {words} words of prose, {columns} columns")
    print(f"the top level: {len(top)} files, {top_lines} lines; train.py imports {len(loaded)} "
          f"files, {loaded_lines} lines, besides {', '.join(NOT_COUNTED)}")

    broken = [text for path, n in product.items() for text in over_each(path, n)]
    broken += over_all(total, top_lines, loaded_lines, words, columns) + misplaced(graph)
    for text in broken:
        print(f"over its bound: {text}")
    if broken and check:
        sys.exit(1)


if __name__ == '__main__':
    main()
