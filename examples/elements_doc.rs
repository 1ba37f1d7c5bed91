// SPDX-License-Identifier: MPL-2.0
//! Prints docs/elements.md: what GStreamer itself says of the elements, as Markdown.
//!
//! ```sh
//! cargo run --release --example elements_doc > docs/elements.md
//! ```
#![allow(clippy::print_stdout, reason = "a program for the terminal")]
#![allow(
    clippy::expect_used,
    reason = "it runs when the documentation is made, and says what is wrong"
)]

use std::fmt::Write as _;

use gst::glib;
use gst::prelude::*;

const HEAD: &str = "# Elements

Made from the elements themselves by `examples/elements_doc.rs`; a test compares. For one element on your machine:
`make inspect ELEMENT=scribetranscriber`.

Properties that change in READY are read when the element leaves it: set them before the pipeline plays, or take the
element back to NULL or READY. Text of array properties for gst-launch-1.0: `vocabulary=\"<Ada,Lovelace>\"`.
";

const REST: &str = "
## Translations

Each pad `translate_src_%u` of `scribetranscriber` gives the text in the language of its own property `language-code`
(string, default `en`; any state): English, for Whisper translates into no other. Another language is a WARNING, and the pad
gives GAPs in step with `src`, so that nobody downstream waits. The pads are children of the element:

```sh
gst-launch-1.0 -e filesrc location=rede.mp3 ! decodebin ! audioconvert ! scribetranscriber name=t model=base-q8_0 translate_src_0::language-code=en \\
    t.src ! queue max-size-time=0 ! scribeenc format=vtt ! filesink location=rede.de.vtt \\
    t.translate_src_0 ! queue max-size-time=0 ! scribeenc format=vtt ! filesink location=rede.en.vtt
```

- What is English already (`language-code=en`, `task=translate`, a model that knows English only) is decoded once: the pads give
  the text of `src`. Else the sound is decoded a second time, however many pads ask for English; without one that is linked it is not.
- `vocabulary` goes into the translation, `prompt` does not: it would be in the other language.
- Segment, `lateness`, GAPs, tags, flushes and the end are those of `src`; the TAG on the pad says `en`. A pad that is linked
  while it plays begins where the others are. No messages tell of translated text, and no pad `unsynced_src` has it.
- One thread serves all pads: a queue behind each keeps one from holding up another. Without `max-size-time=0` it is full after
  one cue, and a file pipeline never starts: one sink has its text and waits for the other's.
- Whoever refuses text behind one pad (not linked, flushing, at its end) holds up nobody as long as another takes it; an error
  behind any pad is the stream's. `src` need not be linked.

## Messages

On the bus as element messages, from `scribetranscriber`, `scribediarizer` and `scribeenroller` while `post-messages` is on.

| name | field | type | |
| --- | --- | --- | --- |
| `scribe/transcript` | `text` | string | the cue, lines parted by a line feed |
| | `start`, `end` | guint64 | stream time in nanoseconds |
| | `final` | gboolean | false, live alone: all text behind the last final one, which may still change; it replaces the one before |
| | `revision` | guint | of text that is not final: counts up |
| | `language` | string | ISO 639-1 |
| | `confidence` | gdouble | mean of the words, 0 to 1; absent without words |
| | `speaker`, `speaker-id` | string | absent where unknown |
| `scribe/turn` | `speaker-id`, `speaker` | string | who spoke |
| | `start`, `end` | guint64 | stream time in nanoseconds |
| | `confidence` | gdouble | 0 to 1 |
| `scribe/relabel` | | | who spoke was somebody else, or has a name or a lasting identity now: the fields of the event of that name |
| `scribe/enrolled` | `id`, `label` | string | a voice was learnt: `voice-…`; the name, or \"Speaker 7\" |
| | `is-new` | gboolean | it was not in the voices before |
| | `net-speech`, `segments` | gdouble, guint | of this recording: seconds of speech of one person alone, pieces that were looked at |
| | `snr`, `level` | gdouble | speech over noise in dB (absent where unknown), level in dBFS |
| | `clipping`, `agreement` | gdouble | part of the samples that are cut off; cosine of the recording's halves, absent for short ones |
| | `telephone` | gboolean | nothing above a telephone's band |
| | `takes`, `total-speech`, `grade` | guint, gdouble, string | of all recordings of the person: how many, seconds, `weak`, `fair` or `good` |
| | `sounds-like` | string | somebody else who is enrolled; absent mostly |
| | `speaker-id` | string | what the diarizer called them; in conversations |
| `scribe/not-enrolled` | `speaker-id`, `reason` | string | a speaker of a conversation was not learnt |
| `scribe/progress` | `percent` | gdouble | 0 to 100, -1 where the length is unknown |
| | `position` | guint64 | stream time in nanoseconds |
| | `text` | string | the same for people |
| `scribe/degraded` | `what`, `from`, `to`, `reason` | string | something was given up to go on: another model, smaller batches, fewer lanes, speakers |
| `scribe/memory` | `device` | string | `cpu`, `cuda:0`; posted every ten seconds of work |
| | `total`, `capacity`, `ceiling` | guint64 | bytes: the device's, what scribe could have, 80 % of that |
| | `booked`, `reserved`, `peak` | guint64 | bytes: against the ceiling, by this process, most so far |
| | `foreign` | guint64 | bytes that others hold |
| | `percent` | gdouble | `booked` of `capacity` |

Speech that a live stream gives up is a QoS message besides: `running-time` and `stream-time` of its start, `timestamp` the same, `duration`; `processed`
counts decodings, `dropped` pieces given up.

The pad `unsynced_src` of `scribetranscriber` has the same as JSON, one object a buffer, when it is known (live streams alone):
`{\"type\":\"final\",\"language\":\"en\",\"text\":…,\"start\":1.02,\"end\":1.9,\"words\":[{\"text\",\"start\",\"end\",\"confidence\",\"speaker\",\"speaker_id\"}]}` and
`{\"type\":\"partial\",\"revision\":7,\"text\":…,\"start\",\"end\"}`; times are seconds of stream time, speakers are absent where unknown, a
buffer's time is the running time at which it was known. Put a queue behind it.

PROGRESS messages of GStreamer's own kind (code `scribe-model`) tell of loading models. Every failure is an ERROR
message: [errors.md](errors.md).

## Events

All are serialized and go downstream, in their place between the words.

| name | fields | from | |
| --- | --- | --- | --- |
| `rstranscribe/speaker-change` | `speaker` (string, may be NULL) | `scribetranscriber` | before the first word of another speaker |
| `rstranscribe/final-transcript` | none | `scribetranscriber` | a stretch of text is complete; live, an utterance |
| TAG | `language-code` | `scribetranscriber` | before the first word in a language |
| GAP | | `scribetranscriber` | no text in this stretch: nobody downstream has to wait |
| `scribe/diarization` | `mode` (string: `offline`, `online`), `latency` (guint64, ns) | `scribediarizer`, sticky | speakers will be told: with `offline` before the end of the stream |
| `scribe/turns` | `watermark` (guint64, running time), `turns`, `exclusive` (GstArray of structures) | `scribediarizer` | who spoke; no turn that begins before the watermark is added later. Each turn: `speaker-id`, `speaker`, `start`, `end` (stream time), `running-start`, `running-end`, `confidence`; in `exclusive` one speaks at a time |
| `scribe/relabel` | `old-id` (string); `new-id`, `name` (string), `from`, `to` (guint64, stream time) may be absent | `scribediarizer`, `scribeenroller` | who spoke was somebody else, or has a name or a lasting identity now |

`scribetranscriber` gives its words the speakers of `scribe/turns` and waits for them; `scribeenc` writes turns and heeds
`scribe/relabel` in JSON and RTTM. Ids of speakers are `speaker-1`, `speaker-2`, … in a recording, and `voice-` with 16
hexadecimal digits, the same in every recording, for those who are known (`voices`).

Names that begin with `rstranscribe/` are those of GStreamer's other transcribers.

## Signals

`scribeenroller` has the action signal `enroll`, without arguments: what was heard so far is enough; the voice is learnt now and
the rest passes. It returns TRUE if the element has taken it; `scribe/enrolled` or an ERROR follows.

## Metas

Custom metas: a GstStructure on the buffer, readable from C and Python without headers of ours. Elements that copy
buffers keep them.

`ScribeTranscriptMeta`, on a text buffer that holds one cue or one word:

| field | type | |
| --- | --- | --- |
| `schema` | string | `scribe-transcript/1` |
| `start`, `end` | guint64 | stream time in nanoseconds |
| `final` | gboolean | false: a guess that later text replaces |
| `unit` | string | `cue` or `word`: what the buffer holds |
| `segment` | GstStructure | `id`, `seek` (guint64), `task`, `language` (string), `temperature`, `avg-logprob`, `compression-ratio`, `no-speech-prob` (gdouble), `tokens` (GstArray of guint) |
| `speaker-id`, `speaker` | string | absent where unknown |
| `words` | GstArray of GstStructure | `text` (string, with the model's leading space), `start`, `end` (guint64), `probability`, `confidence` (gdouble), `speaker-id`, `speaker` (string, absent where unknown) |

`ScribeTurnMeta`, on a buffer of a turn: `schema`, `speaker-id`, `speaker`, `start`, `end`, `confidence`, with the
same types.
";

#[allow(dead_code)] // A test takes `markdown` alone.
fn main() {
    gst::init().expect("GStreamer starts");
    gstscribe::plugin_register_static().expect("the elements register");
    print!("{}", markdown());
}

/// The page.
pub fn markdown() -> String {
    let mut out = HEAD.to_owned();
    for name in [
        "scribetranscriber",
        "scribediarizer",
        "scribeenroller",
        "scribeenc",
        "scribebin",
    ] {
        element(&mut out, name);
    }
    out.push_str(REST);
    out
}

fn element(out: &mut String, name: &str) {
    let factory = gst::ElementFactory::find(name).expect("the element is registered");
    let made = factory.create().build().expect("the element can be made");
    let about = |key| factory.metadata(key).unwrap_or_default().to_owned();
    let _ = write!(
        out,
        "\n## {name}\n\n{}. Class `{}`.\n\n### Pads of {name}\n\n| pad | | caps |\n| --- | --- | --- |\n",
        about("description"),
        about("klass"),
    );
    for template in factory.static_pad_templates() {
        let direction = match template.direction() {
            gst::PadDirection::Sink => "in",
            _ => "out",
        };
        let presence = match template.presence() {
            gst::PadPresence::Always => "always",
            gst::PadPresence::Sometimes => "sometimes",
            _ => "on request",
        };
        let caps: Vec<String> = template.caps().iter().map(caps_text).collect();
        let _ = writeln!(
            out,
            "| `{}` | {direction}, {presence} | {} |",
            template.name_template(),
            caps.join("<br>")
        );
    }
    let _ = write!(
        out,
        "\n### Properties of {name}\n\n| property | type, range | default | changes in | |\n| --- | --- | --- | --- | --- |\n"
    );
    for pspec in made.list_properties() {
        if pspec.owner_type() == made.type_() {
            property(out, &made, &pspec);
        }
    }
    let enums: Vec<glib::EnumClass> = made
        .list_properties()
        .iter()
        .filter(|p| p.owner_type() == made.type_())
        .filter_map(|p| glib::EnumClass::with_type(p.value_type()))
        .collect();
    for class in enums {
        let _ = write!(
            out,
            "\n`{}`:\n\n| value | |\n| --- | --- |\n",
            class.type_().name()
        );
        for value in class.values() {
            let _ = writeln!(out, "| `{}` | {} |", value.nick(), value.name());
        }
    }
}

/// Raw audio differs with GStreamer's version in the formats it names: all are taken.
fn caps_text(structure: &gst::StructureRef) -> String {
    if structure.name() == "audio/x-raw" {
        return "`audio/x-raw`, any format, rate and layout, up to 64 channels".into();
    }
    let fields: Vec<String> = structure
        .iter()
        .map(|(name, value)| {
            let list = value.get::<gst::List>().ok();
            let values = list.map(|l| {
                let values: Vec<String> = l.iter().filter_map(|v| v.get::<String>().ok()).collect();
                format!("{{{}}}", values.join(", "))
            });
            format!(
                ", {name}={}",
                values
                    .or_else(|| value.get::<String>().ok())
                    .unwrap_or_default()
            )
        })
        .collect();
    format!("`{}{}`", structure.name(), fields.concat())
}

fn property(out: &mut String, made: &gst::Element, pspec: &glib::ParamSpec) {
    let read_only = !pspec.flags().contains(glib::ParamFlags::WRITABLE);
    let changes = if read_only {
        "read only"
    } else if pspec.flags().contains(gst::PARAM_FLAG_MUTABLE_PLAYING) {
        "any state"
    } else {
        "NULL, READY"
    };
    let default = if read_only {
        "–".into()
    } else {
        default_text(&made.property_value(pspec.name()))
    };
    // A bar would end the cell.
    let blurb = pspec.blurb().unwrap_or_default().replace('|', "\\|");
    let _ = writeln!(
        out,
        "| `{}` | {} | {default} | {changes} | **{}.** {blurb} |",
        pspec.name(),
        kind(pspec),
        pspec.nick(),
    );
}

fn kind(pspec: &glib::ParamSpec) -> String {
    let blurb = pspec.blurb().unwrap_or_default();
    let unit = if blurb.contains("milliseconds") {
        " ms"
    } else if blurb.contains("characters a second") {
        " characters/s"
    } else {
        ""
    };
    if let Some(p) = pspec.downcast_ref::<glib::ParamSpecUInt>() {
        format!("guint, {} to {}{unit}", p.minimum(), p.maximum())
    } else if let Some(p) = pspec.downcast_ref::<glib::ParamSpecDouble>() {
        format!("gdouble, {} to {}{unit}", p.minimum(), p.maximum())
    } else if pspec.is::<gst::ParamSpecArray>() {
        "array".into()
    } else {
        pspec.value_type().name().to_owned()
    }
}

fn default_text(value: &glib::Value) -> String {
    if let Some((_, value)) = glib::EnumValue::from_value(value) {
        return format!("`{}`", value.nick());
    }
    if let Ok(text) = value.get::<Option<String>>() {
        return match text.as_deref() {
            None | Some("") => "empty".into(),
            Some(text) => format!("`{text}`"),
        };
    }
    if let Ok(array) = value.get::<gst::Array>() {
        let items: Vec<String> = array
            .iter()
            .map(|v| {
                v.get::<f64>()
                    .map_or_else(|_| v.get::<String>().unwrap_or_default(), |n| n.to_string())
            })
            .collect();
        return match items.is_empty() {
            true => "empty".into(),
            false => format!("`<{}>`", items.join(",")),
        };
    }
    if let Ok(number) = value.get::<f64>() {
        // Thresholds are f32 inside.
        return format!("{}", (number * 1e6).round() / 1e6);
    }
    if let Ok(number) = value.get::<u32>() {
        return number.to_string();
    }
    value
        .get::<bool>()
        .map_or_else(|_| "–".into(), |b| b.to_string())
}
