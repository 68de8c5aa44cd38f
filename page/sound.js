// Sound for the page: what prepare.py, the Spectrum of model.py and transcribe.py do, in short.
'use strict';

const HOP = 160;     // samples from frame to frame, as in model.py
const WIN_LENGTH = 400;  // samples of a frame
const N_FFT = 512;
const N_BINS = 128;    // of a frame that are looked at, up to 4 kHz
const N_DEAF = 4;      // bins that are not: hum

let settings;  // of settings.json

// --- the sound of a question ---

// Text, and so many silent slots behind it -> samples
function synthesize(text, rest = 0) {
  const {rate, lead, tone, gap, fade} = settings;
  const first = Math.round(lead * rate);
  const slot = Math.round((tone + gap) * rate);
  const wave = new Float32Array(first + (text.length + rest) * slot);
  for (let i = 0; i < text.length; i++) {
    const hertz = hertzOf(settings.symbols.indexOf(text[i]));
    for (let n = 0; n < tone * rate; n++) {
      const seconds = n / rate;
      const toEdge = Math.min(seconds, tone - seconds);
      const loud = Math.sin(Math.min(1, toEdge / fade) * Math.PI / 2) ** 2;
      const sine = Math.sin(2 * Math.PI * hertz * seconds);
      wave[first + i * slot + n] = settings.loudness * loud * sine;
    }
  }
  return wave;
}

function hertzOf(symbol) {
  return settings.lowest + settings.spacing * symbol;
}

// Samples -> an array of frames, each with the magnitudes of its bins. Frame t ends with sample
// (t + 1) * HOP. A tone of amplitude a peaks at a.
function spectrumOf(wave) {
  const window = new Float32Array(WIN_LENGTH);
  for (let n = 0; n < WIN_LENGTH; n++) {
    window[n] = 0.5 - 0.5 * Math.cos(2 * Math.PI * (n + 0.5) / WIN_LENGTH);
  }
  const frames = [];
  for (let end = HOP; end < wave.length + HOP; end += HOP) {
    const real = new Float32Array(N_FFT);
    const imag = new Float32Array(N_FFT);
    for (let n = 0; n < WIN_LENGTH; n++) {
      real[n] = window[n] * (wave[end - WIN_LENGTH + n] || 0);
    }
    fft(real, imag);
    const frame = new Float32Array(N_BINS);
    for (let k = N_DEAF; k < N_BINS; k++) {
      frame[k] = Math.hypot(real[k], imag[k]) * 4 / WIN_LENGTH;
    }
    frames.push(frame);
  }
  return frames;
}

// In place, of any power of two (Cooley and Tukey, 1965)
function fft(real, imag) {
  const n = real.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [real[i], real[j]] = [real[j], real[i]];
      [imag[i], imag[j]] = [imag[j], imag[i]];
    }
  }
  for (let half = 1; half < n; half *= 2) {
    for (let k = 0; k < half; k++) {
      const cos = Math.cos(Math.PI * k / half);
      const sin = -Math.sin(Math.PI * k / half);
      for (let a = k; a < n; a += 2 * half) {
        const b = a + half;
        const re = real[b] * cos - imag[b] * sin;
        const im = real[b] * sin + imag[b] * cos;
        real[b] = real[a] - re;
        imag[b] = imag[a] - im;
        real[a] += re;
        imag[a] += im;
      }
    }
  }
}

// --- the scorer: from frames to symbols ---

function loudestOf(frames) {
  return Math.max(5e-4, ...frames.map((frame) => Math.max(...frame)));
}

// The tone of one frame: its symbol; '*' if no symbol has this pitch; '' if nothing sounds
function symbolIn(frame, loudest) {
  let k = N_DEAF;
  let sum = 0;
  for (let i = N_DEAF; i < N_BINS - 1; i++) {
    sum += frame[i];
    if (frame[i] > frame[k]) k = i;
  }
  const overNoise = frame[k] > 4 * sum / N_BINS;
  if (frame[k] < 0.12 * loudest || frame[k] < 1e-3 || !overNoise) return '';
  // The top of the parabola through the three highest bins
  const [left, top, right] = [k - 1, k, k + 1].map((i) => Math.log(frame[i] + 1e-6));
  const shift = (left - right) / Math.min(-1e-6, 2 * (left - 2 * top + right));
  const hertz = (k + shift) * settings.rate / N_FFT;
  const symbol = Math.round((hertz - settings.lowest) / settings.spacing);
  return settings.symbols[symbol] || '*';
}

// Frames -> text: what sounds for 50 ms at least
function transcribe(frames) {
  const loudest = loudestOf(frames);
  let text = '';
  let last = '';
  let run = 0;
  for (const frame of frames) {
    const symbol = symbolIn(frame, loudest);
    run = symbol === last ? run + 1 : 1;
    last = symbol;
    if (run === 5) text += symbol;
  }
  return text;
}

// --- a file ---

// Samples -> a WAV file of 16 bits
function wavFile(wave) {
  const rate = settings.rate;
  const view = new DataView(new ArrayBuffer(44 + 2 * wave.length));
  const word = (at, text) => [...text].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  word(0, 'RIFF');
  view.setUint32(4, 36 + 2 * wave.length, true);
  word(8, 'WAVEfmt ');
  view.setUint32(16, 16, true);         // bytes of what follows
  view.setUint16(20, 1, true);          // PCM
  view.setUint16(22, 1, true);          // channels
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);   // bytes a second
  view.setUint16(32, 2, true);          // bytes a sample
  view.setUint16(34, 16, true);         // bits
  word(36, 'data');
  view.setUint32(40, 2 * wave.length, true);
  wave.forEach((sample, i) => {
    view.setInt16(44 + 2 * i, 32767 * Math.max(-1, Math.min(1, sample)), true);
  });
  return new Blob([view], {type: 'audio/wav'});
}
