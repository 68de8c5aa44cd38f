"""
Ask any model behind an OpenAI-compatible API the puzzles of text/words.py, or those that this
project's own model is asked, in words or in sound.

$ python -m text.ask --base_url=http://localhost:8000/v1 --model=NAME --tasks=dyna,logic
$ python -m text.ask --model=NAME --questions=tones              # what score.py asks, in words
$ python -m text.ask --model=NAME --questions=tones --audio=true # as WAV, for models that hear

out_dir gets results.jsonl, a line for each answer; summary.json; and state.json. The same command
goes on where an earlier one was stopped. This project's own model gets the same summary.json from
score.py. The key is read from an environment variable and written nowhere.
"""
from configurator import SEEDS, bounds, choices, configure, fail, names_of

# --- settings ---
# whom to ask
base_url = 'http://localhost:8000/v1'
model = ''                # its name there
key_in = 'OPENAI_API_KEY'  # environment variable that holds the key; without one, none is sent
# what to ask
tasks = 'dyna,inducto,filtro,logic'
difficulties = '1,2,3'
samples = 100             # questions of each task and difficulty
questions = 'words'       # of three levels; or tones: the splits that score.py asks, in words
audio = False             # send the questions of tones as WAV
seed = 1337               # of the questions
dry_run = False           # show the plan and a question of each kind, and ask nothing
# of an answer
max_tokens = 2048         # thoughts included
temperature = 0.0
# requests
timeout = 120.0           # seconds that the server may be silent
requests_per_minute = 60.0
max_concurrent = 10
retries = 5               # of a question that was not answered
backoff = 1.0             # seconds before the first retry; twice as long before each next one
# results
out_dir = ''              # '' is out/ask/ and the model's name
config = configure(globals())

# isort: split
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

from audio.files import write_wav
from prepare import split_batches
from system import catch_signals, claim, write_json, write_text
from tasks import SYMBOLS, TASKS, decode
from text.summary import rows_in, show, summarize
from text.words import PUZZLES, Question, draw_question, in_words, seeded

try:
    import httpx
except ImportError:
    httpx = None  # main() says so

# A server that answers so may take the question later; or no question, ever.
RETRIED_CODES = 408, 409, 425, 429, 500, 502, 503, 504, 529
REFUSED_CODES = 301, 302, 307, 308, 401, 402, 403, 404, 405

# --- what is sent ---

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
# Questions of tones have ten letters.
TEN_LETTERS = " Letters go from A to J, and A follows J."
LISTEN = ("You hear a question played in tones, one symbol each, 100 ms long. From 400 Hz up, 100 "
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
    """All questions -> dicts of sample_id, task, difficulty, input_text, target, metadata, and wav:
    None or, with audio=True, the sound in base64"""
    made = []
    for task in names_of(config, 'tasks', PUZZLES):
        for level in map(int, names_of(config, 'difficulties', ('1', '2', '3'))):
            draw = from_words if questions == 'words' else from_tones
            for i, (question, wav) in enumerate(draw(task, level)):
                made.append({
                    'sample_id': f'{task}_{level}_{i}',
                    'task': task,
                    'difficulty': level,
                    'input_text': question.text,
                    'target': question.target,
                    'metadata': question.metadata,
                    'wav': wav,
                })
    return made


def from_words(task, level):
    """Yield questions of text/words.py, and None for their sound"""
    rng = seeded(seed, task, level)
    for _ in range(samples):
        yield draw_question(task, level, rng), None


def from_tones(task, level):
    """Yield questions that score.py asks, in words, and their sound or None"""
    split = TASKS[task].levels[level - 1]
    for b in split_batches(task, split, samples, seed):
        for wave, n, asked, wanted in zip(b.question, b.lengths, b.asked, b.wanted, strict=True):
            played = decode(asked)
            metadata = {'split': split, 'played': played}
            question = Question(in_words(task, played), decode(wanted), metadata)
            yield question, wav_of(wave[:n]) if audio else None


def wav_of(wave):
    """Samples (S,) -> a WAV file in base64"""
    file = io.BytesIO()
    write_wav(file, wave)
    return base64.b64encode(file.getvalue()).decode()


def messages(one):
    """What is sent for a question"""
    task = one['task']
    how = EXPLAIN[task]
    if questions == 'tones' and task == 'inducto':
        how += TEN_LETTERS
    if not one['wav']:
        return [{'role': 'user', 'content': f"{how} {TELL}\n\n{one['input_text']}"}]
    text = f"{LISTEN.format(symbols=' '.join(SYMBOLS))}{LEGEND[task]}{how} {TELL}"
    sound = {'type': 'input_audio', 'input_audio': {'data': one['wav'], 'format': 'wav'}}
    return [{'role': 'user', 'content': [sound, {'type': 'text', 'text': text}]}]


# --- the answer in what a model wrote ---

def answer_in(text):
    """What stands behind the last ANSWER:, or in the last line; thoughts do not count"""
    text = re.sub(r'<think>.*?(</think>|$)', '', text, flags=re.S | re.I)
    # Marks of the model, of Markdown and of LaTeX, which may stand inside one another
    text = re.sub(r'<[^<>\n]*>|[*_`$]', '', text)
    for _ in range(2):
        text = re.sub(r'\\(?:boxed|text|mathrm)\{([^{}]*)\}', r'\1', text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for i in reversed(range(len(lines))):
        marked = re.search(r'.*\banswer\s*(?:is\b\s*:?|[:：])\s*(.*)', lines[i], re.I)
        if marked:
            return (marked[1] or ''.join(lines[i + 1:i + 2])).strip(' "\'.')
    return lines[-1].strip(' "\'.') if lines else ''


def is_right(answer, target, task):
    """Is it the right answer, in whatever form a puzzle would write it?"""
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


# --- one reply of the server ---

class Refused(Exception):
    """The server will take no question at all"""


class Failed(Exception):
    """This question was not answered. It may be asked again after `wait` seconds, 0 if the server
    does not say; None if that is of no use."""

    def __init__(self, why, wait=0.0):
        super().__init__(why)
        self.wait = wait


def asked_to_wait(reply):
    """Seconds that a server asks for in Retry-After, as a number or a date; 0 if it does not"""
    text = reply.headers.get('retry-after', '')
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    return max(0.0, min(60.0, seconds))


def text_of(content):
    """Text, null, or a list of parts -> text. ValueError if it is none of them"""
    if isinstance(content, list):
        content = ''.join(part['text'] for part in content if part.get('type') == 'text')
    if not isinstance(content or '', str):
        raise ValueError
    return content or ''


def read_reply(reply):
    """What a server sent -> raw_response, prompt_tokens, completion_tokens; Refused or Failed"""
    said = ' '.join(reply.text[:200].split())
    status = f"{reply.status_code} {reply.reason_phrase} {said}".strip()
    if reply.status_code in REFUSED_CODES:
        raise Refused(f"{base_url} refuses: {status}")
    if not reply.is_success:
        may_retry = reply.status_code in RETRIED_CODES
        raise Failed(status, asked_to_wait(reply) if may_retry else None)
    try:
        found = reply.json()
        choice = found['choices'][0]
        text = text_of(choice['message'].get('content'))
        thoughts = choice['message'].get('reasoning') or choice['message'].get('reasoning_content')
        thoughts = text_of(thoughts)
        usage = found.get('usage') or {}
        tokens = {key: int(usage.get(key) or 0) for key in ('prompt_tokens', 'completion_tokens')}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Failed("an answer that is none: " + said[:80]) from None
    # Some models answer in their thoughts, unless they only ran out of tokens there.
    if not text.strip() and choice.get('finish_reason') != 'length':
        text = thoughts
    return {'raw_response': text, **tokens}


class Asker:
    """Asks question after question, from many threads, at so many a minute. It is over when an end
    was asked for, or when the server refuses."""

    def __init__(self, key, stop):
        self.stop = stop       # a list: the signals that ask for an end
        self.refused = ''      # why the server takes no question
        self.reached = False   # has it ever answered?
        self.next_at = 0.0     # when the next request may be sent
        self.lock = Lock()
        headers = {'Authorization': f'Bearer {key}'} if key else {}
        self.client = httpx.Client(base_url=base_url, headers=headers, timeout=timeout)

    def over(self):
        return bool(self.stop or self.refused)

    def sleep(self, seconds):
        end = time.monotonic() + seconds
        while not self.over() and time.monotonic() < end:
            time.sleep(min(0.1, max(0, end - time.monotonic())))

    def wait_for_turn(self):
        with self.lock:
            self.next_at = max(time.monotonic(), self.next_at + 60 / requests_per_minute)
            seconds = self.next_at - time.monotonic()
        self.sleep(seconds)

    def send(self, one):
        """One request -> as read_reply"""
        body = {
            'model': model,
            'messages': messages(one),
            'max_tokens': max_tokens,
            'temperature': temperature,
        }
        try:
            reply = self.client.post('/chat/completions', json=body)
        except httpx.TimeoutException:
            raise Failed(f"no answer within {timeout:g} s") from None
        except httpx.HTTPError as e:
            if isinstance(e, httpx.ConnectError) and not self.reached:
                raise Refused(f"cannot connect to {base_url}: {e}") from None
            raise Failed(str(e) or type(e).__name__) from None
        found = read_reply(reply)
        self.reached = True
        return found

    def ask(self, one):
        """A question, with retries -> its row of results.jsonl, or None if it was stopped"""
        found = {'raw_response': '', 'prompt_tokens': None, 'completion_tokens': None}
        error = latency = None
        for attempt in range(retries + 1):
            self.wait_for_turn()
            if self.over():
                return None
            began = time.monotonic()
            try:
                found, error = self.send(one), None
                latency = round(1000 * (time.monotonic() - began), 1)
                break
            except Refused as e:
                self.refused = str(e)
                return None
            except Failed as e:
                error = str(e)
                if e.wait is None or attempt == retries:
                    break
                later = backoff * 2 ** attempt * random.uniform(0.7, 1.3)
                self.sleep(e.wait or min(later, 60))
        answer = answer_in(found['raw_response'])
        return {
            **{key: value for key, value in one.items() if key not in ('metadata', 'wav')},
            **found,
            'extracted_answer': answer,
            'is_correct': not error and is_right(answer, one['target'], one['task']),
            'latency_ms': latency,
            'error': error,
            'timestamp': datetime.now(timezone.utc).isoformat(timespec='milliseconds'),
            'metadata': one['metadata'],
        }


def key_of():
    """The key in the environment, '' if there is none"""
    key = os.environ.get(key_in, '').strip()
    if not key.isascii() or not key.isprintable():
        fail(f"what {key_in} holds is no key")
    return key


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


def open_folder(folder, settings, every):
    """Claim a folder -> the rows of an earlier run of the same questions. ValueError if it cannot
    be used"""
    claim(folder)
    state_path = os.path.join(folder, 'state.json')
    if os.path.exists(state_path):
        with open(state_path, encoding='utf-8') as f:
            state = json.load(f)
        if not isinstance(state, dict) or state.get('settings') != settings:
            raise ValueError("it holds the answers to other questions; give another --out_dir")
    path = os.path.join(folder, 'results.jsonl')
    rows = answers_in(path, every)
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    write_text(path, text)
    write_state(folder, settings, rows)
    return rows


def write_state(folder, settings, rows):
    completed = [row['sample_id'] for row in rows if not row['error']]
    write_json(os.path.join(folder, 'state.json'), {'settings': settings, 'completed': completed})
    return completed


def ask_all(asker, left, rows, path):
    """Ask the questions that are left; their rows go to the list and to the end of the file"""
    pool = ThreadPoolExecutor(max_concurrent)
    bar = tqdm(total=len(rows) + len(left), initial=len(rows), disable=None)
    with asker.client, open(path, 'a', encoding='utf-8') as results, bar:
        try:
            going = {pool.submit(asker.ask, one) for one in left}
            while going:
                ended, going = wait(going, 0.2, FIRST_COMPLETED)
                for row in filter(None, [future.result() for future in ended]):
                    results.write(json.dumps(row) + '\n')
                    results.flush()
                    rows.append(row)
                    bar.update()
        except BaseException:
            asker.refused = 'this program ends'
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def check_settings():
    bounds(config, samples=1, max_tokens=1, temperature=0, timeout=(0.1, 86400),
           requests_per_minute=0.01, max_concurrent=1, retries=0, backoff=0, seed=SEEDS)
    choices(config, questions=('words', 'tones'))
    for key, one in {'model': 'model', 'tasks': 'task', 'difficulties': 'difficulty'}.items():
        if not config[key]:
            fail(f"name a {one}: --{key}=...")
    if audio and questions != 'tones':
        fail("audio=true needs questions=tones")
    if httpx is None:
        fail("text.ask needs httpx: pip install httpx")
    if not re.match(r'https?://[^/\s]+', base_url):
        fail(f"base_url begins with http:// or https://, not {base_url!r}")
    try:
        httpx.URL(base_url)
    except httpx.InvalidURL as e:
        fail(f"base_url is no address, {base_url!r}: {e}")


def main():
    check_settings()
    key = key_of()
    every = make_questions()
    print(f"asking {model} {len(every) // samples} x {samples} = {len(every)} questions, at "
          f"{requests_per_minute:g} a minute at most")
    if dry_run:
        for one in every[::samples]:
            print(f"{one['sample_id']}: {one['input_text']} {one['target']}")
        return

    folder = out_dir or os.path.join('out', 'ask', re.sub(r'[^\w-]+', '_', model))
    kept = ('model', 'tasks', 'difficulties', 'samples', 'questions', 'audio', 'max_tokens',
            'temperature', 'seed')
    settings = {name: config[name] for name in kept}
    try:
        rows = open_folder(folder, settings, every)
    except (OSError, ValueError) as e:
        fail(f"cannot use {folder}: {getattr(e, 'strerror', None) or e}", 1)
    done = {row['sample_id'] for row in rows}
    left = [one for one in every if one['sample_id'] not in done]
    if done:
        print(f"{len(done)} of them have been answered before")
    asker = Asker(key, catch_signals())
    try:
        ask_all(asker, left, rows, os.path.join(folder, 'results.jsonl'))
        completed = write_state(folder, settings, rows)
        summary = {**summarize(model, folder, rows), 'questions': questions}
        write_json(os.path.join(folder, 'summary.json'), summary)
    except OSError as e:
        fail(f"cannot write to {folder}: {e.strerror}", 1)
    if asker.refused:
        fail(asker.refused, 1)
    if rows:
        show(summary)
    print(f"results are in {folder}")
    if len(completed) < len(every):
        print(f"{len(every) - len(completed)} questions are left; the same command asks them")
        sys.exit(asker.stop[0] if asker.stop else 1)


if __name__ == '__main__':
    main()
