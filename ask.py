"""
Ask any model behind an OpenAI-compatible API the puzzles of words.py, or those that this project's
own model is asked, in words or in sound.

$ python ask.py --base_url=http://localhost:8000/v1 --model=NAME --tasks=dyna,logic --samples=100
$ python ask.py --model=NAME --questions=tones              # what score.py asks, put into words
$ python ask.py --model=NAME --questions=tones --audio=true # as WAV, for models that hear

out_dir gets results.jsonl, a line for each answer; summary.json; and state.json. The same command
goes on where an earlier one was stopped. Tasks worked out by this project's own model get the same
summary.json from score.py. The key is read from an environment variable and written nowhere.
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
from datetime import UTC, datetime
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
    write_json,
    write_whole,
)
from words import PUZZLES, draw_of, in_words, question, show, summarize

try:
    import httpx
except ImportError:
    fail("ask.py needs httpx: pip install httpx")

base_url = 'http://localhost:8000/v1'
model = ''                # its name there
tasks = 'dyna,inducto,filtro,logic'
difficulties = '1,2,3'
samples = 100             # questions of each task and difficulty
questions = 'words'       # of three levels; or tones: the splits that score.py asks, in words
audio = False             # send the questions of tones as WAV
max_tokens = 2048         # of an answer, thoughts included
temperature = 0.0
timeout = 120.0           # seconds that an answer may take
requests_per_minute = 60.0
max_concurrent = 10
retries = 5               # of a question that was not answered
patience = 1.0            # seconds before the first retry; twice as long before each next one
key_in = 'OPENAI_API_KEY'  # environment variable that holds the key; without one, none is sent
out_dir = ''              # '' is out/ask/ and the model's name
seed = 1337               # of the questions
dry_run = False           # show the plan and a question of each kind, and ask nothing
config = configure(globals())

RETRIED = 408, 409, 425, 429, 500, 502, 503, 504, 529
TELL = ("Solve the puzzle. Think as long as you need to, then end with a line that holds nothing "
        "but ANSWER: and the answer, in the form in which the puzzle writes such things.")
EXPLAIN = {
    'dyna': "The operations are carried out from left to right, counted from 0.",
    'inducto': "One hidden rule turns each list into the list behind it. Apply it to the last one.",
    'filtro': "Follow the edges of the stream that is asked, as many steps as hops says.",
    'logic': "Evaluate the gates. The answer is 0 or 1.",
}
TONES = ("You hear a question played in tones, one symbol each, 100 ms long. From 400 Hz up, 100 "
         "Hz apart, the symbols are {symbols} ")


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
    if not one['wav']:
        text = f"{EXPLAIN[one['task']]} {TELL}\n\n{one['input_text']}"
        return [{'role': 'user', 'content': text}]
    from tasks import SYMBOLS
    text = TONES.format(symbols=' '.join(SYMBOLS)) + TELL
    sound = {'type': 'input_audio', 'input_audio': {'data': one['wav'], 'format': 'wav'}}
    return [{'role': 'user', 'content': [sound, {'type': 'text', 'text': text}]}]


def found_in(text):
    """The answer in what a model wrote: behind the last ANSWER:, or its last line; thoughts do not
    count"""
    text = re.sub(r'<think>.*?(</think>|$)', '', text, flags=re.S)
    marked = re.findall(r'ANSWER\s*:\s*(.+)', text, re.I)
    if marked:
        return marked[-1].strip(' *`\'"$.')
    lines = text.strip().splitlines()
    return lines[-1].strip(' *`\'"$.') if lines else ''


def same(answer, target):
    """Are they the same letters, digits or words, with or without what stands between them?"""
    def bare(text):
        text = re.sub(r'^[AB]:', '', text)  # of which stream
        return re.sub(r'\W', '', text).lower()

    return bare(answer) == bare(target)


# --- one question ---

class Refused(Exception):
    """The server will take no question at all"""


turn, lock = [0.0], Lock()


def wait_for_turn(stop):
    """Sleep until the next request may be sent"""
    with lock:
        turn[0] = max(time.monotonic(), turn[0] + 60 / requests_per_minute)
        at = turn[0]
    sleep(at - time.monotonic(), stop)


def sleep(seconds, stop):
    end = time.monotonic() + seconds
    while not stop and time.monotonic() < end:
        time.sleep(min(0.1, max(0, end - time.monotonic())))


def send(client, one):
    """One request -> what was answered, dict; ValueError if that is none, httpx.HTTPError"""
    body = {'model': model, 'messages': messages(one), 'max_tokens': max_tokens,
            'temperature': temperature}
    reply = client.post('/chat/completions', json=body)
    if reply.status_code in (401, 403, 404):
        raise Refused(f"{base_url} refuses: {reply.status_code} {reply.reason_phrase}")
    reply.raise_for_status()
    try:
        found = reply.json()
        message, usage = found['choices'][0]['message'], found.get('usage') or {}
        text = message.get('content') or ''
        thoughts = message.get('reasoning') or message.get('reasoning_content') or ''
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError("an answer that is none: " + reply.text[:80]) from None
    if not text.strip() and re.search('ANSWER', thoughts, re.I):  # it ended in its thoughts
        text = thoughts
    return {'raw_response': text, 'prompt_tokens': usage.get('prompt_tokens'),
            'completion_tokens': usage.get('completion_tokens')}


def ask(client, one, stop):
    """A question, with retries -> its row of results.jsonl, or None if it was stopped"""
    error = ''
    row = {'raw_response': '', 'prompt_tokens': None, 'completion_tokens': None}
    for attempt in range(retries + 1):
        wait_for_turn(stop)
        if stop:
            return None
        start = time.monotonic()
        after = patience * 2 ** attempt * random.uniform(0.7, 1.3)
        try:
            row, error = send(client, one), ''
        except Refused:
            stop.append(0)
            raise
        except httpx.HTTPStatusError as e:
            error = f"{e.response.status_code} {e.response.reason_phrase}"
            if e.response.status_code not in RETRIED:
                break
            asked_to = e.response.headers.get('retry-after', '')
            after = float(asked_to) if asked_to.isdigit() else after
        except httpx.TimeoutException:
            error = f"no answer within {timeout:g} s"
        except (httpx.HTTPError, ValueError) as e:
            error = str(e) or type(e).__name__
        latency = 1000 * (time.monotonic() - start)
        if not error:
            break
        if attempt < retries:
            sleep(min(after, 60), stop)
    answer = found_in(row['raw_response'])
    return {
        **{key: one[key] for key in ('sample_id', 'task', 'difficulty', 'input_text', 'target')},
        **row, 'extracted_answer': answer, 'is_correct': not error and same(answer, one['target']),
        'latency_ms': None if error else round(latency, 1), 'error': error or None,
        'timestamp': datetime.now(UTC).isoformat(timespec='milliseconds'),
        'metadata': one['metadata'],
    }


# --- all of them ---

def rows_in(path):
    """Rows of an earlier run; those that were not answered, or not written to the end, are asked
    again"""
    rows = []
    if os.path.exists(path):
        with open(path) as f:
            for line in f:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if not row['error']:
                    rows.append(row)
    return rows


def main():
    every = make_questions()
    kinds = len(every) // samples
    print(f"asking {model} {kinds} x {samples} = {len(every)} questions, at "
          f"{requests_per_minute:g} a minute at most")
    if dry_run:
        for one in every[::samples]:
            print(f"{one['sample_id']}: {one['input_text']} {one['target']}")
        return

    folder = out_dir or os.path.join('out', 'ask', re.sub(r'[^\w.-]+', '_', model))
    path, state_path = os.path.join(folder, 'results.jsonl'), os.path.join(folder, 'state.json')
    free = 'base_url', 'requests_per_minute', 'max_concurrent', 'retries', 'patience', 'timeout'
    settings = {key: config[key] for key in config if key not in (*free, 'out_dir', 'dry_run')}
    try:
        os.makedirs(folder, exist_ok=True)
        if os.path.exists(state_path):
            with open(state_path) as f:
                if json.load(f)['settings'] != settings:
                    fail(f"{folder} holds the answers to other questions; give another --out_dir")
        rows = rows_in(path)
        text = ''.join(json.dumps(row) + '\n' for row in rows).encode()
        write_whole(path, lambda f: f.write(text))
        write_json(state_path, {'settings': settings, 'completed': []})
    except (OSError, ValueError, KeyError) as e:
        fail(f"cannot use {folder}: {e}")
    done = {row['sample_id'] for row in rows}
    left = [one for one in every if one['sample_id'] not in done]
    if done:
        print(f"{len(done)} of them have been answered before")

    key = os.environ.get(key_in)
    headers = {'Authorization': f'Bearer {key}'} if key else {}
    stop, refused = catch_signals(), ''
    client = httpx.Client(base_url=base_url, headers=headers, timeout=timeout)
    with client, ThreadPoolExecutor(max_concurrent) as pool, open(path, 'a') as results:
        with tqdm(total=len(every), initial=len(done), disable=None) as bar:
            going = {pool.submit(ask, client, one, stop) for one in left}
            while going:
                ended, going = wait(going, 0.2, FIRST_COMPLETED)
                for future in ended:
                    try:
                        row = future.result()
                    except Refused as e:
                        refused = str(e)
                        continue
                    if row:
                        results.write(json.dumps(row) + '\n')
                        results.flush()
                        rows.append(row)
                        bar.update()
    completed = [row['sample_id'] for row in rows if not row['error']]
    write_json(state_path, {'settings': settings, 'completed': completed})
    write_json(os.path.join(folder, 'summary.json'), summarize(model, folder, rows))
    if refused:
        fail(refused, 1)
    if rows:
        show(summarize(model, folder, rows))
    print(f"results are in {folder}")
    if len(completed) < len(every):
        print(f"{len(every) - len(completed)} questions are left; the same command asks them")
        sys.exit(128 + stop[0] if stop else 1)


if __name__ == '__main__':
    bounds(config, samples=1, max_tokens=1, temperature=0, timeout=0.1, requests_per_minute=0.01,
           max_concurrent=1, retries=0, patience=0, seed=SEEDS)
    choices(config, questions=('words', 'tones'))
    if not model:
        fail("name a model: --model=NAME")
    if audio and questions != 'tones':
        fail("audio=true needs questions=tones")
    main()
