// SPDX-License-Identifier: MPL-2.0
// The position in the recording: the player moves it, everything follows it.

let position = 0;
let follows = true;
const sound = data.sound === undefined ? null : new Audio();

function soundInside() {
  // A Blob and not the data: URI itself, which some browsers cut off or cannot seek in. By pieces, as the whole
  // would be in memory three times.
  const uri = byId('sound').textContent;
  const comma = uri.indexOf(',');
  const type = uri.slice(5, uri.indexOf(';'));
  const parts = [];
  for (let from = comma + 1; from < uri.length; from += 1 << 20) {
    const piece = atob(uri.slice(from, from + (1 << 20)));
    const bytes = new Uint8Array(piece.length);
    for (let n = 0; n < piece.length; n++) bytes[n] = piece.charCodeAt(n);
    parts.push(bytes);
  }
  byId('sound').remove();
  return URL.createObjectURL(new Blob(parts, { type }));
}

function seek(to, { play = false, show = false } = {}) {
  position = Math.min(Math.max(0, to), total);
  if (sound) {
    sound.currentTime = position;
    if (play) start();
  }
  if (show || play) {
    follows = true;
    drawFollow();
  }
  update({ jumped: true, show });
}

const jump = (by) => seek((sound ? sound.currentTime : position) + by, { show: !sound || sound.paused });

function start() {
  sound.play().catch((error) => {
    if (error.name !== 'AbortError') complain();
  });
}

function complain() {
  const inside = data.sound === '';
  byId('notice').textContent = inside
    ? 'This browser cannot play the recording that is inside. Convert it to Opus or MP3 and make the page again.'
    : `The recording ${data.title} is not where it was beside this page, or this browser cannot `
      + 'play it. Put it there, or make the page with --embed.';
  byId('notice').hidden = false;
}

function drawFollow() {
  byId('follow').hidden = follows || !sound || sound.paused;
}

if (sound) {
  sound.id = 'audio';
  sound.preload = 'metadata';
  sound.addEventListener('error', complain);
  sound.addEventListener('loadedmetadata', () => {
    byId('notice').hidden = true;
    if (Number.isFinite(sound.duration) && sound.duration > total + 0.05) {
      total = sound.duration;
      facts();
      layOut();
    }
  });
  let due = 0;
  const follow = () => {
    position = sound.currentTime;
    update({});
    cancelAnimationFrame(due);
    if (!sound.paused) due = requestAnimationFrame(follow);
  };
  const heed = () => {
    document.body.classList.toggle('playing', !sound.paused);
    byId('play').setAttribute('aria-label', sound.paused ? 'Play' : 'Pause');
    drawFollow();
    follow();
  };
  for (const kind of ['play', 'pause', 'ended', 'seeked']) sound.addEventListener(kind, heed);
  document.body.append(sound);
  // What is inside stands behind this script: the page is drawn while the rest is read.
  if (data.sound) sound.src = data.sound;
  else document.addEventListener('DOMContentLoaded', () => { sound.src = soundInside(); });

  byId('player').hidden = byId('speeds').hidden = false;
  byId('play').addEventListener('click', toggle);
  byId('back').addEventListener('click', () => jump(-JUMP));
  byId('on').addEventListener('click', () => jump(JUMP));
  byId('speed').addEventListener('change', () => {
    sound.playbackRate = Number(byId('speed').value);
  });
  byId('follow').addEventListener('click', () => {
    follows = true;
    drawFollow();
    update({ show: true });
  });
  // Whoever scrolls by hand reads elsewhere: by wheel, finger, scroll bar or key.
  const away = () => {
    if (follows && !sound.paused) {
      follows = false;
      drawFollow();
    }
  };
  text.addEventListener('wheel', away, { passive: true });
  text.addEventListener('touchmove', away, { passive: true });
  document.addEventListener('pointerdown', (event) => {
    if (event.clientX >= document.documentElement.clientWidth) away();
  });
  document.addEventListener('keydown', (event) => {
    if (['PageUp', 'PageDown', 'Home', 'End', 'ArrowUp', 'ArrowDown'].includes(event.key)
      && !event.target.matches('input, select')) away();
  });
}
byId('keys').append(...(sound ? [make('kbd', '', 'space'), ' play, '] : []),
  make('kbd', '', '←'), ' ', make('kbd', '', '→'), ' 5 s,');

function toggle() {
  if (!sound) return;
  if (sound.paused) start();
  else sound.pause();
}

byId('seek').addEventListener('input', () => seek(Number(byId('seek').value), { show: true }));

let spoken = new Set();
let paragraphNow = null;
/** Everything that depends on the position. */
function update({ jumped = false, show = false }) {
  byId('now').textContent = clock(position);
  byId('seek').value = position;
  byId('seek').setAttribute('aria-valuetext', `${clock(position)} of ${clock(total)}`);

  // Several may be spoken at once. A click lands on the very start: half a millisecond more is asked for.
  const at = position + 0.0005;
  const after = firstOf(inTime, (w) => w.start > at);
  const now = new Set();
  for (let n = after - 1; n >= 0 && inTime[n].start >= at - longest; n--) {
    if (inTime[n].end > at) now.add(inTime[n]);
  }
  for (const word of spoken) if (!now.has(word)) word.element.classList.remove('spoken');
  for (const word of now) if (!spoken.has(word)) word.element.classList.add('spoken');
  const changed = [...now].find((w) => !spoken.has(w));
  spoken = now;

  const nearest = [...now][0] ?? inTime[after - 1] ?? inTime[0];
  if (nearest && nearest.paragraph !== paragraphNow) {
    paragraphNow?.section.classList.remove('speaks');
    paragraphNow = nearest.paragraph;
    paragraphNow.section.classList.add('speaks');
  }
  if (nearest && (show || (follows && sound && !sound.paused && changed))) showWord(nearest, show);
  keepInView(jumped);
  drawPlayhead();
}

/** What stays in view above the text: all of the stage, or where there is little room its controls alone. */
function stuck() {
  return [byId('stage'), byId('controls')].find((e) => getComputedStyle(e).position === 'sticky'
    && getComputedStyle(e).display !== 'contents');
}

/** Brings a word to the middle of what is free below the timeline, if it is not in view. */
function showWord(word, always = false) {
  const box = word.element.getBoundingClientRect();
  const top = stuck()?.getBoundingClientRect().bottom ?? 0;
  if (!always && box.top > top + 20 && box.bottom < innerHeight - 60) return;
  const near = Math.abs(box.top - innerHeight / 2) < innerHeight;
  const smooth = near && !isStill.matches && document.visibilityState === 'visible';
  word.element.scrollIntoView({ block: 'center', inline: 'nearest', behavior: smooth ? 'smooth' : 'instant' });
}
