// Recording, playing and drawing sound.

export const RATE = 16000;

let context = null;

export function audioContext() {
  context ??= new AudioContext();
  if (context.state === "suspended") context.resume();
  return context;
}

/** Samples of 16-bit PCM in base64, as floats in [-1, 1]. */
export function decodePcm(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const whole = new Int16Array(bytes.buffer, 0, bytes.length >> 1);
  return Float32Array.from(whole, (value) => value / 32768);
}

function base64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

function toPcm(samples) {
  return Int16Array.from(samples, (value) => Math.round(Math.max(-1, Math.min(1, value)) * 32767));
}

export function encodePcm(samples) {
  return base64(new Uint8Array(toPcm(samples).buffer));
}

/** A WAV file in base64. */
export function encodeWav(samples, rate) {
  const data = toPcm(samples);
  const view = new DataView(new ArrayBuffer(44));
  const write = (at, text) => [...text].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  write(0, "RIFF"); view.setUint32(4, 36 + data.byteLength, true); write(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, rate * 2, true); view.setUint16(32, 2, true);
  view.setUint16(34, 16, true); write(36, "data"); view.setUint32(40, data.byteLength, true);
  const file = new Uint8Array(44 + data.byteLength);
  file.set(new Uint8Array(view.buffer)); file.set(new Uint8Array(data.buffer), 44);
  return base64(file);
}

export function joinSamples(blocks) {
  const joined = new Float32Array(blocks.reduce((sum, block) => sum + block.length, 0));
  let at = 0;
  for (const block of blocks) { joined.set(block, at); at += block.length; }
  return joined;
}

/** Records from the microphone until `stop`; `onLevel` gets the loudness of each block, `onFull` ends a long one. */
export class Microphone {
  constructor(maxSeconds, onLevel, onFull) {
    Object.assign(this, { maxSeconds, onLevel, onFull, blocks: [], length: 0 });
  }

  async start() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("this browser gives a microphone only to pages over HTTPS or from this machine");
    }
    const sound = audioContext();
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
    await sound.audioWorklet.addModule("/page/recorder.js");
    this.rate = sound.sampleRate;
    this.source = sound.createMediaStreamSource(this.stream);
    this.node = new AudioWorkletNode(sound, "recorder", { numberOfOutputs: 0 });
    this.node.port.onmessage = ({ data }) => {
      this.blocks.push(data);
      this.length += data.length;
      this.onLevel(Math.sqrt(data.reduce((sum, value) => sum + value * value, 0) / data.length));
      if (this.length >= this.maxSeconds * this.rate) this.onFull();
    };
    this.source.connect(this.node);
  }

  /** The samples and their rate. */
  stop() {
    this.node.port.onmessage = null;
    this.source.disconnect();
    for (const track of this.stream.getTracks()) track.stop();
    return { samples: joinSamples(this.blocks), rate: this.rate };
  }
}

/** Plays pieces of sound one after the other, while more of them arrive. */
export class Player {
  constructor(onPosition, onEnd) {
    Object.assign(this, { onPosition, onEnd, sources: [], next: 0, open: true, played: [] });
  }

  /** Add samples; `tag` and the position in its sound are reported while they play. */
  push(samples, tag, offset = 0) {
    if (!samples.length || !this.open) return;
    const sound = audioContext();
    const buffer = sound.createBuffer(1, samples.length, RATE);
    buffer.copyToChannel(samples, 0);
    const source = sound.createBufferSource();
    source.buffer = buffer;
    source.connect(sound.destination);
    const begin = Math.max(this.next, sound.currentTime + 0.03);
    source.start(begin);
    this.next = begin + buffer.duration;
    this.sources.push(source);
    this.played.push({ begin, end: this.next, tag, offset });
    this.timer ??= setInterval(() => this.report(), 40);
  }

  /** No more samples come: `onEnd` is called when all have been played. */
  finish() {
    this.finished = true;
    this.timer ??= setInterval(() => this.report(), 40);
  }

  report() {
    const now = audioContext().currentTime;
    const current = this.played.find(({ begin, end }) => begin <= now && now < end);
    if (current) this.onPosition(current.tag, current.offset + now - current.begin);
    if (this.finished && now >= this.next) this.stop();
  }

  stop() {
    if (!this.open) return;
    this.open = false;
    clearInterval(this.timer);
    for (const source of this.sources) { try { source.stop(); } catch { /* it has not started */ } }
    this.onEnd();
  }
}

function prepare(canvas) {
  const scale = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const draw = canvas.getContext("2d");
  draw.scale(scale, scale);
  return [draw, width, height];
}

export function drawWave(canvas, samples) {
  const [draw, width, height] = prepare(canvas);
  draw.fillStyle = getComputedStyle(canvas).getPropertyValue("color");
  const columns = Math.max(1, Math.floor(width / 2));
  for (let column = 0; column < columns; column++) {
    const [from, to] = [0, 1].map((more) => Math.floor(((column + more) * samples.length) / columns));
    let peak = 0;
    for (let i = from; i < to; i++) peak = Math.max(peak, Math.abs(samples[i]));
    const size = Math.max(1, peak * (height - 2));
    draw.fillRect((column * width) / columns, (height - size) / 2, Math.max(1, width / columns - 0.7), size);
  }
}

/** Rows of colored cells: phonetic, pitch and style units, each lasting until the next one of its stream. */
export function drawUnits(canvas, units) {
  const [draw, width, height] = prepare(canvas);
  const tokens = [...units.matchAll(/\[(Hu|Pi|St)(\d+)\]/g)].map(([, stream, value]) => [stream, Number(value)]);
  const streams = ["Hu", "Pi", "St"].filter((name) => tokens.some(([stream]) => stream === name));
  const total = Math.max(1, tokens.filter(([stream]) => stream === "Hu").length);
  const color = {
    Hu: (value) => `hsl(${(value * 137.5) % 360} 62% ${52 + (value % 3) * 7}%)`,
    Pi: (value) => `hsl(${250 - value * 3.4} 65% ${30 + value * 0.6}%)`,
    St: (value) => `hsl(${(value * 47) % 360} 45% 58%)`,
  };
  streams.forEach((name, row) => {
    const top = (row * height) / streams.length;
    const cells = [];
    let place = 0;
    for (const [stream, value] of tokens) {
      if (stream === name) cells.push([place, value]);
      if (stream === "Hu") place++;
    }
    cells.forEach(([from, value], index) => {
      const to = index + 1 < cells.length ? cells[index + 1][0] : total;
      draw.fillStyle = color[name](value);
      draw.fillRect((from * width) / total, top, Math.max(1, ((to - from) * width) / total - 0.5), height / streams.length - 1);
    });
  });
}
