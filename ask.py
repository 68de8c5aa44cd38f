"""
Ask any model behind an OpenAI-compatible API the puzzles of words.py, or those that this project's
own model is asked, in words or in sound.

$ python ask.py --base_url=http://localhost:8000/v1 --model=NAME --tasks=dyna,logic --samples=100
$ python ask.py --model=NAME --questions=tones              # what score.py asks, put into words
$ python ask.py --model=NAME --questions=tones --audio=true # as WAV, for models that hear

out_dir gets results.jsonl, a line for each answer; summary.json; and state.json. The same command
goes on where an earlier one was stopped. This project's own model gets the same summary.json from
score.py. The key is read from an environment variable and written nowhere.
"""
import base64
import io
import json
import os
import random
import re
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from threading import Lock

from tqdm import tqdm

from configurator import (
    SEEDS,
    bounds,
    catch_signals,
    choices,
    configure,
    fail,
    names_of,
)
from results import claim, rows_in, write_json, write_whole
from words import PUZZLES, draw_of, in_words, question, show, summarize

base_url = 'http://localhost:8000/v1'
model = ''                # its name there
tasks = 'dyna,inducto,filtro,logic'
difficulties = '1,2,3'
samples = 100             # questions of each task and difficulty
questions = 'words'       # of three levels; or tones: the splits that score.py asks, in words
audio = False             # send the questions of tones as WAV
max_tokens = 2048         # of an answer, thoughts included
temperature = 0.0
timeout = 120.0           # seconds that the server may be silent
requests_per_minute = 60.0
max_concurrent = 10
retries = 5               # of a question that was not answered
patience = 1.0            # seconds before the first retry; twice as long before each next one
key_in = 'OPENAI_API_KEY'  # environment variable that holds the key; without one, none is sent
out_dir = ''              # '' is out/ask/ and the model's name
seed = 1337               # of the questions
dry_run = False           # show the plan and a question of each kind, and ask nothing
config = configure(globals())

try:
    import httpx
except ImportError:
    fail("ask.py needs httpx: pip install httpx")

RETRIED = 408, 409, 425, 429, 500, 502, 503, 504, 529
REFUSED = 301, 302, 307, 308, 401, 402, 403, 404, 405
TELL = ("Solve the puzzle. Think as long as you need to, then end with a line that holds nothing "
        "but ANSWER: and the answer itself.")
EXPLAIN = {
    'dyna': "The operations are carried out from left to right. Places are counted from 0; "
            "REVERSE(i,j) turns i to j around, j included; a rotation moves all letters by so many "
            "places. A position is answered with the letter that stands there then, an element "
            "with its place.",
    'inducto': "One hidden rule turns each list into the list behind it. Apply it to the last one.",
    'filtro': "Follow the edges of the stream that is asked, as many steps as hops says, and "
              "answer with the node that you come to.",
    'logic': "Evaluate the gates. The answer is 0 or 1.",
}
LETTERS = " Letters go from A to J, and A follows J."  # of the questions of tones
TONES = ("You hear a question played in tones, one symbol each, 100 ms long. From 400 Hz up, 100 "
         "Hz apart, the symbols are {symbols}. ")
LEGEND = {
    'dyna': "First come the letters. & is SWAP and two places, n REVERSE and two places, ^ "
            "ROTATE_LEFT and | ROTATE_RIGHT by a digit, ? what is asked: a place or a letter. ",
    'inducto': "Between what goes in and what comes out is >, between examples ?. ",
    'filtro': "A>B is an edge, of letters or of digits; ? asks from where and how many hops. ",
    'logic': "A1 gives a wire its value; A&BC is a gate A of B and C: & and, | or, ^ xor, n not "
             "and, o not or, ~ not; ? asks for a wire. ^ in front of bits alone is their parity. ",
}


def make_questions():
    """All questions -> dicts of sample_id, task, difficulty, input_text, target, metadata, and with
    audio=True the WAV in base64"""
    out = []
    for task in names_of(config, 'tasks', PUZZLES):
        for level in map(int, names_of(config, 'difficulties', ('1', '2', '3'))):
            if questions == 'words':
                draw = draw_of(seed, task, level)
                drawn = [(*question(task, level, draw), None) for _ in range(samples)]
            else:
                drawn = of_tones(task, level)
            for i, (text, target, more, wav) in enumerate(drawn):
                out.append({'sample_id': f'{task}_{level}_{i}', 'task': task, 'difficulty': level,
                            'input_text': text, 'target': target, 'metadata': more, 'wav': wav})
    return out


def of_tones(task, level):
    """Questions that score.py asks -> what in_words makes of them, answers, metadata, WAV"""
    from files import write_wav
    from prepare import split_batches
    from tasks import TASKS, decode
    split = TASKS[task].levels[level - 1]
    for b in split_batches(task, split, samples, seed):
        for wave, n, asked, wanted in zip(b.question, b.lengths, b.asked, b.wanted, strict=True):
            text, wav = decode(asked), None
            if audio:
                file = io.BytesIO()
                write_wav(file, wave[:n])
                wav = base64.b64encode(file.getvalue()).decode()
            yield in_words(task, text), decode(wanted), {'split': split, 'played': text}, wav


def messages(one):
    """What is sent for a question"""
    task = one['task']
    how = EXPLAIN[task] + (LETTERS if questions == 'tones' and task == 'inducto' else '')
    if not one['wav']:
        return [{'role': 'user', 'content': f"{how} {TELL}\n\n{one['input_text']}"}]
    from tasks import SYMBOLS
    text = f"{TONES.format(symbols=' '.join(SYMBOLS))}{LEGEND[task]}{how} {TELL}"
    sound = {'type': 'input_audio', 'input_audio': {'data': one['wav'], 'format': 'wav'}}
    return [{'role': 'user', 'content': [sound, {'type': 'text', 'text': text}]}]


# --- the answer in what a model wrote ---

def found_in(text):
    """What stands behind the last ANSWER:, or in the last line; thoughts do not count"""
    text = re.sub(r'<think>.*?(</think>|$)', '', text, flags=re.S | re.I)
    text = re.sub(r'<[^<>\n]*>|[*_`$]', '', text)  # marks of the model and of Markdown
    for _ in range(2):
        text = re.sub(r'\\(?:boxed|text|mathrm)\{([^{}]*)\}', r'\1', text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for i in reversed(range(len(lines))):
        marked = re.search(r'.*\banswer\s*(?:is\b\s*:?|[:：])\s*(.*)', lines[i], re.I)
        if marked:
            return (marked[1] or ''.join(lines[i + 1:i + 2])).strip(' "\'.')
    return lines[-1].strip(' "\'.') if lines else ''


def same(answer, target, task):
    """Is it the same answer, in whatever form a puzzle would write it?"""
    answer = re.sub(r'\s*\([^()]*\)$', '', answer.strip().lower()).strip(' "\'.')
    answer = re.split(r'->|=|\bis\b|\bat\b', answer)[-1].strip()
    answer = re.sub(r'^(position|index|place|element|node|letter|stream|query)\b\s*', '', answer)
    if task == 'filtro':
        answer = re.sub(r'^[ab]\s*[: ]\s*', '', answer)
    if task == 'dyna':
        answer = answer.split(':')[-1].strip()
    if task == 'logic':
        answer = {'true': '1', 'false': '0'}.get(answer, answer)
    if task == 'inducto':
        answer = re.sub(r'[\s,:"\'\[\]()]|\band\b', '', answer)
        target = re.sub(r'[\s\[\]]', '', target)
    return answer == target.lower()


# --- one question ---

class Refused(Exception):
    """The server will take no question at all"""


turn, lock, answered = [0.0], Lock(), []


def wait_for_turn(over):
    """Sleep until the next request may be sent"""
    with lock:
        turn[0] = max(time.monotonic(), turn[0] + 60 / requests_per_minute)
        at = turn[0]
    sleep(at - time.monotonic(), over)


def sleep(seconds, over):
    end = time.monotonic() + seconds
    while not over() and time.monotonic() < end:
        time.sleep(min(0.1, max(0, end - time.monotonic())))


def asked_to_wait(reply):
    """Seconds that a server asks for in Retry-After, as a number or a date; 0 if it does not"""
    text = reply.headers.get('retry-after', '')
    try:
        return max(0.0, min(60.0, float(text)))
    except ValueError:
        pass
    try:
        return max(0.0, min(60.0, parsedate_to_datetime(text).timestamp() - time.time()))
    except (ValueError, TypeError):
        return 0.0


def text_of(content):
    """Text, null, or a list of parts -> text"""
    if isinstance(content, list):
        content = ''.join(part['text'] for part in content if part.get('type') == 'text')
    if not isinstance(content or '', str):
        raise ValueError
    return content or ''


def send(client, one):
    """One request -> what was answered, dict. ValueError if that is none; httpx.HTTPError; Refused
    """
    body = {'model': model, 'messages': messages(one), 'max_tokens': max_tokens,
            'temperature': temperature}
    try:
        reply = client.post('/chat/completions', json=body)
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as e:
        raise Refused(f"{base_url} is no address of an API: {e}") from None
    except httpx.ConnectError as e:
        if answered:
            raise
        raise Refused(f"cannot connect to {base_url}: {e}") from None
    said = ' '.join(reply.text[:200].split())
    if reply.status_code in REFUSED:
        raise Refused(f"{base_url} refuses: {reply.status_code} {reply.reason_phrase} {said}")
    reply.raise_for_status()
    try:
        found = reply.json()
        choice, usage = found['choices'][0], found.get('usage') or {}
        message = choice['message']
        text = text_of(message.get('content'))
        thoughts = text_of(message.get('reasoning') or message.get('reasoning_content'))
        tokens = {key: int(usage.get(key) or 0) for key in ('prompt_tokens', 'completion_tokens')}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError("an answer that is none: " + said[:80]) from None
    if not text.strip() and choice.get('finish_reason') != 'length':
        text = thoughts  # it answered in its thoughts
    return {'raw_response': text, **tokens}


def ask(client, one, over):
    """A question, with retries -> its row of results.jsonl, or None if it was stopped"""
    error = ''
    row = {'raw_response': '', 'prompt_tokens': None, 'completion_tokens': None}
    for attempt in range(retries + 1):
        wait_for_turn(over)
        if over():
            return None
        start = time.monotonic()
        after = patience * 2 ** attempt * random.uniform(0.7, 1.3)
        try:
            row, error = send(client, one), ''
            answered.append(one['sample_id'])
            break
        except httpx.HTTPStatusError as e:
            said = ' '.join(e.response.text[:200].split())
            error = f"{e.response.status_code} {e.response.reason_phrase} {said}".strip()
            if e.response.status_code not in RETRIED:
                break
            after = asked_to_wait(e.response) or after
        except httpx.TimeoutException:
            error = f"no answer within {timeout:g} s"
        except (httpx.HTTPError, ValueError) as e:
            error = str(e) or type(e).__name__
        if attempt < retries:
            sleep(min(after, 60), over)
    answer = found_in(row['raw_response'])
    latency = round(1000 * (time.monotonic() - start), 1)
    return {
        **{key: one[key] for key in ('sample_id', 'task', 'difficulty', 'input_text', 'target')},
        **row, 'extracted_answer': answer,
        'is_correct': not error and same(answer, one['target'], one['task']),
        'latency_ms': None if error else latency, 'error': error or None,
        'timestamp': datetime.now(timezone.utc).isoformat(timespec='milliseconds'),
        'metadata': one['metadata'],
    }


# --- all of them ---

def answers_in(path, every):
    """Rows of an earlier run, of questions that are asked now; those that were not answered, or not
    written to the end, are asked again"""
    asked = {one['sample_id']: one['input_text'] for one in every}
    rows = {}
    for row in rows_in(path) if os.path.exists(path) else []:
        name = str(row.get('sample_id'))
        if row.get('error', 'none') is None and asked.get(name) == row.get('input_text', 0):
            rows[name] = row
    return list(rows.values())


def key_of():
    """The key in the environment, '' if there is none"""
    key = os.environ.get(key_in, '').strip()
    if not key.isascii() or not key.isprintable():
        fail(f"what {key_in} holds is no key")
    return key


def open_folder(folder, settings, every):
    """Make or lock a folder -> the rows of an earlier run of the same questions"""
    path, state_path = (os.path.join(folder, name) for name in ('results.jsonl', 'state.json'))
    claim(folder)
    if os.path.exists(state_path):
        with open(state_path, encoding='utf-8') as f:
            state = json.load(f)
        if not isinstance(state, dict) or state.get('settings') != settings:
            fail(f"{folder} holds the answers to other questions; give another --out_dir")
    rows = answers_in(path, every)
    text = ''.join(json.dumps(row) + '\n' for row in rows).encode()
    write_whole(path, lambda f: f.write(text))
    write_json(state_path, {'settings': settings, 'completed': [r['sample_id'] for r in rows]})
    return rows


def ask_all(left, rows, path, n_all):
    """Ask the questions that are left; their rows go to the list and the file -> the signals that
    asked for an end, and why the server refuses"""
    stop, refused = catch_signals(), []

    def over():
        return bool(stop or refused)

    key = key_of()
    headers = {'Authorization': f'Bearer {key}'} if key else {}
    client = httpx.Client(base_url=base_url, headers=headers, timeout=timeout)
    pool = ThreadPoolExecutor(max_concurrent)
    bar = tqdm(total=n_all, initial=n_all - len(left), disable=None)
    with client, open(path, 'a', encoding='utf-8') as results, bar:
        try:
            going = {pool.submit(ask, client, one, over) for one in left}
            while going:
                ended, going = wait(going, 0.2, FIRST_COMPLETED)
                for future in ended:
                    try:
                        row = future.result()
                    except Refused as e:
                        refused.append(str(e))
                        continue
                    if row:
                        results.write(json.dumps(row) + '\n')
                        results.flush()
                        rows.append(row)
                        bar.update()
        except BaseException:
            refused.append('')
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    return stop, refused


def main():
    every = make_questions()
    kinds = len(every) // samples
    print(f"asking {model} {kinds} x {samples} = {len(every)} questions, at "
          f"{requests_per_minute:g} a minute at most")
    if dry_run:
        for one in every[::samples]:
            print(f"{one['sample_id']}: {one['input_text']} {one['target']}")
        return

    folder = out_dir or os.path.join('out', 'ask', re.sub(r'[^\w-]+', '_', model))
    kept = ('model', 'tasks', 'difficulties', 'samples', 'questions', 'audio', 'max_tokens',
            'temperature', 'seed')
    settings = {key: config[key] for key in kept}
    path = os.path.join(folder, 'results.jsonl')
    try:
        rows = open_folder(folder, settings, every)
        done = {row['sample_id'] for row in rows}
        left = [one for one in every if one['sample_id'] not in done]
        if done:
            print(f"{len(done)} of them have been answered before")
        stop, refused = ask_all(left, rows, path, len(every))
        completed = [row['sample_id'] for row in rows if not row['error']]
        write_json(os.path.join(folder, 'state.json'),
                   {'settings': settings, 'completed': completed})
        summary = {**summarize(model, folder, rows), 'questions': questions}
        write_json(os.path.join(folder, 'summary.json'), summary)
    except (OSError, ValueError) as e:
        fail(f"cannot use {folder}: {getattr(e, 'strerror', None) or e}", 1)
    if refused:
        fail(refused[0], 1)
    if rows:
        show(summary)
    print(f"results are in {folder}")
    if len(completed) < len(every):
        print(f"{len(every) - len(completed)} questions are left; the same command asks them")
        sys.exit(stop[0] if stop else 1)


if __name__ == '__main__':
    bounds(config, samples=1, max_tokens=1, temperature=0, timeout=(0.1, 86400),
           requests_per_minute=0.01, max_concurrent=1, retries=0, patience=0, seed=SEEDS)
    choices(config, questions=('words', 'tones'))
    for key in ('model', 'tasks', 'difficulties'):
        if not config[key]:
            fail(f"name a {key.rstrip('s')}: --{key}=...")
    if not re.match(r'https?://[^/\s]+', base_url):
        fail(f"base_url begins with http:// or https://, not {base_url!r}")
    if audio and questions != 'tones':
        fail("audio=true needs questions=tones")
    main()
