// Jericho in a browser: plays a question in tones, lets the network hear it and then its own
// answers, until the sound no longer changes, and shows and plays what it hears.
// sound.js comes first.
'use strict';

let network;  // model.onnx: one pass, from sound to sound

// --- the network ---

// White noise of deviation 1, always the same (Box and Muller, 1958)
function makeNoise(n) {
  let state = 1;
  function random() {
    state = (48271 * state) % 2147483647;
    return state / 2147483647;
  }
  const noise = new Float32Array(n);
  for (let i = 0; i < n; i++) {
    noise[i] = Math.sqrt(-2 * Math.log(random())) * Math.cos(2 * Math.PI * random());
  }
  return noise;
}

// Samples -> an answer after each pass: its samples, and whether it is what was heard. As
// think.converse does it.
async function* converse(question) {
  const token = settings.token;
  const n = token * Math.max(2, Math.ceil(question.length / token));
  const gain = settings.loudness / loudestOf(spectrumOf(question));
  let wave = new Float32Array(n);
  wave.set(question.map((sample) => gain * sample));
  const noise = new ort.Tensor('float32', makeNoise(n + token), [n + token]);
  for (let pass = 1; pass <= settings.passes; pass++) {
    const heard = new ort.Tensor('float32', wave, [1, n]);
    const {answer, change} = await network.run({question: heard, noise});
    wave = Float32Array.from(answer.data);
    const same = change.data[0] < settings.change;
    yield {wave, same};
    if (same) return;
    await new Promise((resume) => setTimeout(resume));  // the page draws
  }
}

// --- the page ---

const $ = (id) => document.getElementById(id);
const NAMES = {
  '(': 'open bracket', ')': 'close bracket', '%': 'per cent', '?': 'question mark',
  '>': 'greater than', '&': 'and', '|': 'bar', '^': 'caret', '~': 'tilde', '=': 'equals',
};

let asked = 0;                 // questions so far; a new one ends the one before
let queue;                     // done when nobody uses the network: the next one waits for it

function say(sentence) {
  $('said').textContent = sentence;
}

// Run something that may fail: what goes wrong is said in one sentence.
async function attempt(action) {
  try {
    await action();
  } catch (error) {
    say(error instanceof Sentence ? error.message : `Something went wrong: ${error.message}`);
  }
}

class Sentence extends Error {}

// As it is typed -> symbols only
function cleaned(text) {
  let symbols = '';
  for (const c of text.replace(/\s/g, '')) {
    const found = [c, c.toUpperCase()].find((s) => settings.symbols.includes(s));
    if (!found) throw new Sentence(`“${c}” has no tone; the keys show what has one.`);
    symbols += found;
  }
  if (!symbols) throw new Sentence('A question needs at least one symbol.');
  return symbols;
}

function askText() {
  return attempt(() => {
    if (!settings) return;
    const text = cleaned($('question').value);
    $('question').value = text;
    // Some tasks want silence behind a question. The task is the one with the fewest symbols.
    const fit = settings.tasks.filter((task) => [...text].every((c) => task.symbols.includes(c)));
    fit.sort((a, b) => a.symbols.length - b.symbols.length);
    $('link').href = '?ask=' + encodeURIComponent(text);
    $('link').hidden = false;
    ask(synthesize(text, fit.length ? fit[0].rest : 0), text);
  });
}

// Let the network think, after it is done with whatever it was asked before.
function ask(wave, text) {
  const mine = ++asked;
  queue = queue.then(() => attempt(() => answer(wave, text, mine)));
}

async function answer(question, text, mine) {
  if (mine !== asked || !network) return;
  if (question.length > settings.longest * settings.rate) {
    throw new Sentence(`A question may last ${settings.longest} seconds at most.`);
  }
  $('passes').replaceChildren();
  $('sound').hidden = true;
  say('Thinking …');
  show('question', question);
  reveal();
  let passes = 0;
  let done = false;
  let wave = question;
  let heard = '';
  for await (const pass of converse(question)) {
    if (mine !== asked) return;
    wave = pass.wave;
    done = pass.same;
    // The last pass only repeats the one before.
    if (!done || !passes) {
      passes++;
      heard = show(`pass ${passes}`, wave);
    }
  }
  const times = passes === 1 ? 'one pass' : `${passes} passes`;
  const rest = done || settings.passes === 1 ? '' : ' It was still changing its answer.';
  say(`Asked ${text}, it plays ${heard || 'nothing'} after ${times}.${rest}`);
  $('answer').textContent = heard || 'silence';
  if ($('audio').src) URL.revokeObjectURL($('audio').src);
  $('audio').src = $('download').href = URL.createObjectURL(wavFile(wave));
  $('sound').hidden = false;
  reveal();
  $('audio').play().catch(() => {});  // a browser may want a click first
}

// Scroll to the answer: on a telephone what stands above it leaves it no room.
function reveal() {
  $('said').scrollIntoView({block: innerWidth > 600 ? 'nearest' : 'start'});
}

// Add a sound to the list of passes -> what is heard in it
function show(name, wave) {
  const frames = spectrumOf(wave);
  const text = transcribe(frames);
  const row = document.createElement('li');
  const button = makeButton('▶', () => playSound(wave));
  button.setAttribute('aria-label', `Play ${name}`);
  const label = document.createElement('div');
  const symbols = document.createElement('span');
  label.className = 'name';
  symbols.className = 'text';
  symbols.textContent = text || 'silence';
  label.append(`${name}: `, symbols);
  row.append(label, button, drawing(frames, `Spectrogram of ${name}: ${text || 'silence'}`));
  $('passes').append(row);
  return text;
}

// Frames -> a canvas: time to the right, pitch upwards, from black by red to yellow
function drawing(frames, label) {
  const canvas = document.createElement('canvas');
  canvas.width = frames.length;
  canvas.height = N_BINS;
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', label);
  const context = canvas.getContext('2d');
  const image = context.createImageData(frames.length, N_BINS);
  for (let t = 0; t < frames.length; t++) {
    for (let k = 0; k < N_BINS; k++) {
      const light = Math.min(1, Math.log1p(100 * frames[t][k]) / 4.2);
      const pixel = 4 * ((N_BINS - 1 - k) * frames.length + t);
      image.data[pixel] = 20 + 235 * Math.min(1, 1.6 * light);
      image.data[pixel + 1] = 16 + 214 * light ** 2;
      image.data[pixel + 2] = 40 + 60 * Math.sin(Math.PI * light);
      image.data[pixel + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function makeButton(text, action) {
  const button = document.createElement('button');
  button.type = 'button';
  button.textContent = text;
  button.addEventListener('click', action);
  return button;
}

// --- sound out and in ---

let speaker;

function playSound(wave) {
  speaker = speaker || new AudioContext();
  const buffer = speaker.createBuffer(1, wave.length, settings.rate);
  buffer.copyToChannel(wave, 0);
  const source = speaker.createBufferSource();
  source.buffer = buffer;
  source.connect(speaker.destination);
  source.start();
}

// Ask what is in a sound file.
async function askFile(blob) {
  const context = new OfflineAudioContext(1, 1, settings.rate);
  let sound;
  try {
    sound = await context.decodeAudioData(await blob.arrayBuffer());  // at the context's rate
  } catch {
    throw new Sentence('This file holds no sound that your browser can read.');
  }
  const wave = new Float32Array(sound.length);
  for (let c = 0; c < sound.numberOfChannels; c++) {
    sound.getChannelData(c).forEach((sample, i) => { wave[i] += sample; });
  }
  const frames = spectrumOf(wave);
  const loudest = loudestOf(frames);
  const sounds = frames.map((frame) => symbolIn(frame, loudest) !== '');
  if (!sounds.includes(true)) throw new Sentence('Nothing can be heard in it.');
  const begin = Math.max(0, sounds.indexOf(true) - 3) * HOP;
  const played = wave.slice(begin, (sounds.lastIndexOf(true) + 6) * HOP);
  // Some tasks are answered in the silence behind a question.
  const question = new Float32Array(played.length + settings.silence_behind * settings.rate);
  question.set(played);
  $('link').hidden = true;
  ask(question, transcribe(spectrumOf(question)) || 'a sound');
}

let recorder;

// Start to record; or, if it does, end, as two seconds of silence behind a sound do.
async function record() {
  if (recorder) {
    recorder.stop();
    return;
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({audio: {
      echoCancellation: false, noiseSuppression: false, autoGainControl: false}});
  } catch {
    throw new Sentence('The microphone cannot be used; the browser asks for it on https pages.');
  }
  recorder = new MediaRecorder(stream);
  recorder.addEventListener('dataavailable', (event) => attempt(() => askFile(event.data)));
  recorder.start();
  $('record').textContent = 'Stop';
  $('record').setAttribute('aria-pressed', 'true');
  say('Recording …');
  const context = new AudioContext();
  const meter = context.createAnalyser();
  context.createMediaStreamSource(stream).connect(meter);
  const wave = new Float32Array(meter.fftSize);
  let loudest = 0.02;
  let lastSound = Infinity;
  const began = Date.now();
  const timer = setInterval(() => {
    meter.getFloatTimeDomainData(wave);
    const level = Math.max(...wave.map(Math.abs));
    loudest = Math.max(loudest, level);
    if (level > 0.3 * loudest && level > 0.02) lastSound = Date.now();
    const over = Date.now() > Math.min(lastSound + 2000, began + 1000 * settings.longest);
    if (over && recorder.state === 'recording') recorder.stop();
  }, 50);
  recorder.addEventListener('stop', () => {
    clearInterval(timer);
    context.close();
    stream.getTracks().forEach((track) => track.stop());
    recorder = undefined;
    $('record').textContent = 'Record';
    $('record').setAttribute('aria-pressed', 'false');
  });
}

// --- begin ---

function makeExamples() {
  for (const task of settings.tasks) {
    const button = makeButton('', () => {
      $('question').value = task.example;
      askText();
    });
    const text = document.createElement('b');
    const about = document.createElement('span');
    text.textContent = task.example;
    about.textContent = task.about;
    button.append(text, about);
    $('examples').append(button);
  }
}

function makeKeys() {
  const taught = settings.tasks.map((task) => task.symbols).join('');
  for (const [i, symbol] of [...settings.symbols].entries()) {
    if (!taught.includes(symbol)) continue;
    const key = makeButton(symbol, () => {
      $('question').value += symbol;
      playSound(synthesize(symbol));
    });
    key.setAttribute('aria-label', `${NAMES[symbol] || symbol}, ${hertzOf(i)} hertz`);
    key.title = `${hertzOf(i)} Hz`;
    $('keys').append(key);
  }
  const back = makeButton('Delete', () => {
    $('question').value = $('question').value.slice(0, -1);
  });
  const clear = makeButton('Clear', () => {
    $('question').value = '';
  });
  const play = makeButton('Play all', () => attempt(() => {
    playSound(synthesize(cleaned($('question').value)));
  }));
  for (const button of [back, clear, play]) {
    button.className = 'wide';
    $('keys').append(button);
  }
}

// A packed file -> what is in it. Some hosts unpack it themselves.
async function unpack(path) {
  const bytes = await (await fetch(path)).arrayBuffer();
  const [first, second] = new Uint8Array(bytes);
  if (first !== 0x1f || second !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return new Response(stream).arrayBuffer();
}

async function begin() {
  if (location.protocol === 'file:') {
    throw new Sentence('Browsers run this page from a server only: python -m http.server -d demo');
  }
  settings = await (await fetch('settings.json')).json();
  $('question').placeholder = settings.tasks[0].example;
  makeExamples();
  makeKeys();
  $('play').open = innerWidth > 600;  // a telephone has no room
  $('record').addEventListener('click', () => attempt(record));
  $('file').addEventListener('change', () => attempt(async () => {
    const [file] = $('file').files;
    $('file').value = '';  // the same may be opened again
    if (file) await askFile(file);
  }));
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = await unpack('ort-wasm-simd-threaded.wasm.gz');
  const model = new Uint8Array(await unpack('model.onnx.gz'));
  network = await ort.InferenceSession.create(model, {executionProviders: ['wasm']});
  say('Ready.');
}

$('form').addEventListener('submit', (event) => {
  event.preventDefault();
  askText();
});
const linked = new URLSearchParams(location.search).get('ask');
queue = attempt(begin);
if (linked) {
  $('question').value = linked;
  queue = queue.then(askText);
}
