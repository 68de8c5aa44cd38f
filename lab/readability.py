"""
How much is there to read, and how dense is it?

$ python tools/readability.py            # one row for each tracked .py file
$ python tools/readability.py --check    # exit code 1 if anything is over its bound

A code line is a line on which a token starts; comments and docstrings are no code. The product is
everything but the tests; configs are settings and are not counted. By the same count nanoGPT has
8.9 tokens a code line, nanochat 9.2.
"""
import ast
import subprocess
import sys
import tokenize
from collections import Counter

COLUMNS = 100     # the widest line
DENSE = 35        # tokens from which on a line is dense
TOKENS = 11       # bounds of the product: tokens a code line,
DENSE_SHARE = 2   # per cent of its code lines that are dense
WORDS = 2300      # of README.md
LINES = {'model.py': 600, 'train.py': 430}
OTHER_LINES = 450

LAYOUT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENCODING, tokenize.ENDMARKER,
}
HEADER = f"{'file':24} lines  code  tokens/line  dense  comments  >{COLUMNS}  lambdas"


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


def count(path):
    """A Python file -> Counter of its lines, code, tokens, dense, comments, wide and lambdas"""
    with open(path, encoding='utf-8') as f:
        lines = f.read().splitlines()
    tree = ast.parse('\n'.join(lines))
    with open(path, 'rb') as f:
        tokens = list(tokenize.tokenize(f.readline))

    found = Counter(lines=len(lines))
    found['wide'] = sum(len(line) > COLUMNS for line in lines)
    found['comments'] = sum(
        t.type == tokenize.COMMENT and t.line.lstrip().startswith('#') for t in tokens)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            found['lambdas'] += 1

    skipped = docstring_rows(tree)
    per_row = Counter()
    for t in tokens:
        row = t.start[0]
        if t.type not in LAYOUT and row not in skipped:
            per_row[row] += 1
    found['code'] = len(per_row)
    found['tokens'] = per_row.total()
    found['dense'] = sum(n >= DENSE for n in per_row.values())
    return found


def ratios(n):
    """Counts -> tokens a code line, and dense and comment lines in 100 code lines"""
    code = max(1, n['code'])
    return n['tokens'] / code, 100 * n['dense'] / code, 100 * n['comments'] / code


def show(name, n):
    tokens, dense, comments = ratios(n)
    print(f"{name:24} {n['lines']:5} {n['code']:5} {tokens:12.1f}", end='')
    print(f" {dense:5.1f}% {comments:8.1f}% {n['wide']:5} {n['lambdas']:8}")


def over(files, total, words):
    """A sentence for each bound that is broken"""
    found = []
    for path, n in files.items():
        most = LINES.get(path, OTHER_LINES)
        if n['lines'] > most:
            found.append(f"{path} has {n['lines']} lines, over {most}")
        if 'test' in path:
            continue
        if n['wide']:
            found.append(f"{path} has {n['wide']} lines of over {COLUMNS} columns")
        if n['lambdas']:
            found.append(f"{path} binds {n['lambdas']} lambdas to names")
    tokens, dense, _ = ratios(total)
    if tokens > TOKENS:
        found.append(f"the product has {tokens:.2f} tokens a code line, over {TOKENS}")
    if dense > DENSE_SHARE:
        found.append(f"{dense:.1f}% of the product's code lines are dense, over {DENSE_SHARE}%")
    if words > WORDS:
        found.append(f"README.md has {words} words, over {WORDS}")
    return found


def main():
    listed = subprocess.run(
        ['git', 'ls-files', '*.py'], capture_output=True, text=True, check=True)
    paths = [p for p in listed.stdout.splitlines() if not p.startswith('config/')]
    files = {path: count(path) for path in paths}
    total = Counter()
    for path, n in files.items():
        if 'test' not in path:
            total.update(n)
    with open('README.md', encoding='utf-8') as f:
        words = len(f.read().split())

    print(HEADER)
    for path, n in files.items():
        show(path, n)
    show('the product', total)
    print(f"README.md: {words} words")
    broken = over(files, total, words)
    for sentence in broken:
        print(f"over its bound: {sentence}")
    if broken and '--check' in sys.argv:
        sys.exit(1)


if __name__ == '__main__':
    main()
