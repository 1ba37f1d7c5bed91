// SPDX-License-Identifier: MPL-2.0
//! Tokens: their bytes, the marks, what is never written, and text into tokens.
//!
//! The tokens come with the model, as bytes, in the order of their numbers. Those of GPT-2's way of making them, byte pair
//! encoding, are numbered in the order in which they were made out of shorter ones: so their numbers say too which pair is
//! joined first. Source: openai-whisper, `tokenizer.py`; tiktoken, `bpe.rs`.

use std::ops::Range;

/// Property of the decoder's file: the tokens, one a line, in GPT-2's alphabet.
pub(super) const PROPERTY: &str = "vocabulary";
/// Plain tokens, in which the English and the multilingual vocabularies are alike in number. Behind them the multilingual
/// ones have a number that is not used.
pub(super) const PLAIN: usize = 50_256;
/// Marks that are no languages: end, start, six more, and 1501 times of 20 ms.
const OTHER_MARKS: usize = 8 + 1501;
/// No token is longer; the longest of Whisper's has 128 bytes.
const TOKEN_BYTES_MAX: usize = 512;
/// Signs that stand for sounds, moods and songs, which are not speech. All are forbidden where they are one token, with or
/// without a space before.
const SIGNS: &[&str] = &[
    "\"",
    "#",
    "(",
    ")",
    "*",
    "+",
    "/",
    ":",
    ";",
    "<",
    "=",
    ">",
    "@",
    "[",
    "\\",
    "]",
    "^",
    "_",
    "`",
    "{",
    "|",
    "}",
    "~",
    "「",
    "」",
    "『",
    "』",
    "<<",
    ">>",
    "<<<",
    ">>>",
    "--",
    "---",
    "-(",
    "-[",
    "('",
    "(\"",
    "((",
    "))",
    "(((",
    ")))",
    "[[",
    "]]",
    "{{",
    "}}",
    "♪♪",
    "♪♪♪",
];
/// Notes and their like: forbidden by their first token.
const NOTES: &[&str] = &["♩", "♪", "♫", "♬", "♭", "♮", "♯"];
/// Forbidden at the start of a word alone.
const AT_WORD_START: &[&str] = &[" -", " '"];
/// Endings that are tokens of their own.
const CONTRACTIONS: [&str; 7] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];

/// The tokens of a model.
#[derive(Debug)]
pub(super) struct Vocabulary {
    /// All plain tokens end to end.
    bytes: Vec<u8>,
    /// Where each begins, and where the last ends.
    starts: Vec<u32>,
    /// Numbers of the plain tokens, in the order of their bytes.
    sorted: Vec<u32>,
    /// With the marks.
    len: usize,
    suppressed: Vec<u32>,
    not_first: Vec<u32>,
}

impl Vocabulary {
    /// From the property's text, for a model of `len` tokens with their marks.
    pub fn parse(text: &str, len: usize) -> Result<Self, String> {
        // Nothing but the line feed separates: some tokens hold other ends of lines.
        Self::of_words(text.split('\n'), len)
            .map_err(|what| format!("its property \"{PROPERTY}\" has {what}"))
    }

    /// From tokens in GPT-2's alphabet, in the order of their numbers; what comes behind the plain ones is passed over.
    pub fn of_words<'a>(words: impl Iterator<Item = &'a str>, len: usize) -> Result<Self, String> {
        let alphabet = alphabet();
        let mut tokens = Vec::with_capacity(PLAIN + 1);
        for (number, word) in words.take(PLAIN).enumerate() {
            let byte = |c: char| alphabet.get(c as usize).copied().flatten();
            let token: Option<Vec<u8>> = word.chars().map(byte).collect();
            tokens.push(
                token
                    .filter(|token| !token.is_empty())
                    .ok_or_else(|| format!("a token {number} that is not in GPT-2's alphabet"))?,
            );
        }
        let multilingual = len > PLAIN + OTHER_MARKS + 99;
        if tokens.len() < PLAIN || len < PLAIN + OTHER_MARKS {
            return Err(format!(
                "{} tokens, and {PLAIN} plain ones are wanted for {len}",
                tokens.len()
            ));
        }
        if multilingual {
            tokens.push(Vec::new());
        }
        Self::of(&tokens, len)
    }

    /// Of these plain tokens; one without bytes is none.
    fn of(tokens: &[Vec<u8>], len: usize) -> Result<Self, String> {
        let mut bytes = Vec::with_capacity(tokens.iter().map(Vec::len).sum());
        let mut starts = vec![0];
        for (number, token) in tokens.iter().enumerate() {
            if token.len() > TOKEN_BYTES_MAX {
                return Err(format!("a token {number} of {} bytes", token.len()));
            }
            bytes.extend_from_slice(token);
            starts.push(bytes.len() as u32);
        }
        let mut vocabulary = Self {
            bytes,
            starts,
            sorted: Vec::new(),
            len,
            suppressed: Vec::new(),
            not_first: Vec::new(),
        };
        let empty = |n: &u32| tokens[*n as usize].is_empty();
        let mut sorted: Vec<u32> = (0..tokens.len() as u32).filter(|n| !empty(n)).collect();
        sorted.sort_by(|a, b| tokens[*a as usize].cmp(&tokens[*b as usize]));
        let twice = sorted
            .windows(2)
            .find(|w| tokens[w[0] as usize] == tokens[w[1] as usize]);
        if let Some(twice) = twice {
            return Err(format!(
                "tokens {} and {} that are the same",
                twice[0], twice[1]
            ));
        }
        vocabulary.sorted = sorted;
        let space = vocabulary.find(b" ");
        vocabulary.not_first = space.into_iter().chain([vocabulary.end()]).collect();
        vocabulary.suppressed = vocabulary.no_speech_signs();
        let unused = (0..tokens.len() as u32).filter(empty);
        vocabulary.suppressed.extend(unused);
        Ok(vocabulary)
    }

    /// Tokens, marks included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The bytes of a plain token; none of a mark.
    pub fn token(&self, number: u32) -> &[u8] {
        let number = number as usize;
        match self.starts.get(number..number + 2) {
            Some(at) => &self.bytes[at[0] as usize..at[1] as usize],
            None => &[],
        }
    }

    /// Whether it is a piece of text, and no mark.
    pub fn is_text(&self, token: u32) -> bool {
        token < self.end()
    }

    /// The mark that ends a text. All plain tokens have lower numbers.
    pub fn end(&self) -> u32 {
        (self.starts.len() - 1) as u32
    }

    /// The mark that starts one.
    pub fn start(&self) -> u32 {
        self.end() + 1
    }

    /// Marks of the languages, in whisper.cpp's order.
    pub fn languages(&self) -> Range<usize> {
        let first = self.start() as usize + 1;
        let others = self.starts.len() - 1 + OTHER_MARKS;
        first..first + self.len.saturating_sub(others)
    }

    /// Asks for English text.
    pub fn translate(&self) -> u32 {
        self.languages().end as u32
    }

    /// Asks for text in the language that is spoken.
    pub fn transcribe(&self) -> u32 {
        self.translate() + 1
    }

    /// Stands before what was said before.
    pub fn previous(&self) -> u32 {
        self.translate() + 3
    }

    /// Nobody speaks.
    pub fn no_speech(&self) -> u32 {
        self.translate() + 4
    }

    /// Asks for text without times.
    pub fn no_timestamps(&self) -> u32 {
        self.translate() + 5
    }

    /// Marks that no text has in it.
    pub fn never(&self) -> Range<usize> {
        self.start() as usize..self.len
    }

    /// Plain tokens that no text has in it: signs for what is not speech.
    pub fn suppressed(&self) -> &[u32] {
        &self.suppressed
    }

    /// What no text begins with.
    pub fn not_first(&self) -> impl Iterator<Item = u32> {
        self.not_first.iter().copied()
    }

    /// Nor has a text these in it, or those at its beginning. Marks are forbidden or wanted by themselves.
    pub fn forbid(&mut self, always: &[u32], first: &[u32]) {
        let end = self.end();
        self.suppressed.extend(always.iter().filter(|n| **n < end));
        self.suppressed.sort_unstable();
        self.suppressed.dedup();
        self.not_first.extend(first.iter().filter(|n| **n <= end));
        self.not_first.sort_unstable();
        self.not_first.dedup();
    }

    /// The tokens of a text.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        let mut rest = text;
        while let Some(piece) = first_piece(rest) {
            self.join(piece.as_bytes(), &mut out);
            rest = &rest[piece.len()..];
        }
        out
    }

    /// Joins bytes to tokens, those with the lowest number first.
    fn join(&self, piece: &[u8], out: &mut Vec<u32>) {
        // Where each part begins, and where the last ends.
        let mut cuts: Vec<usize> = (0..=piece.len()).collect();
        loop {
            let joined = cuts
                .windows(3)
                .enumerate()
                .filter_map(|(at, cut)| Some((self.find(&piece[cut[0]..cut[2]])?, at)));
            let Some((_, at)) = joined.min() else { break };
            cuts.remove(at + 1);
        }
        // A byte that is no token has no place in a prompt.
        let parts = cuts
            .windows(2)
            .filter_map(|cut| self.find(&piece[cut[0]..cut[1]]));
        out.extend(parts);
    }

    fn find(&self, token: &[u8]) -> Option<u32> {
        let at = self.sorted.binary_search_by(|n| self.token(*n).cmp(token));
        at.ok().map(|at| self.sorted[at])
    }

    fn no_speech_signs(&self) -> Vec<u32> {
        let mut out: Vec<u32> = Vec::new();
        for sign in SIGNS.iter().chain(NOTES) {
            for text in [(*sign).to_owned(), format!(" {sign}")] {
                let tokens = self.encode(&text);
                if tokens.len() == 1 || NOTES.contains(sign) {
                    out.extend(tokens.first());
                }
            }
        }
        for text in AT_WORD_START {
            out.extend(self.encode(text).first());
        }
        out.sort_unstable();
        out.dedup();
        out
    }
}

/// GPT-2's alphabet, a character a byte: printable Latin-1 stands for itself, the 68 other bytes, in rising order, are
/// U+0100, U+0101 and so on.
fn alphabet() -> Vec<Option<u8>> {
    let is_plain = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let own = (0..=u8::MAX).map(|byte| is_plain(byte).then_some(byte));
    let others = (0..=u8::MAX).filter(|byte| !is_plain(*byte)).map(Some);
    own.chain(others).collect()
}

/// The first piece of a text within which bytes are joined: GPT-2's pattern
/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
fn first_piece(text: &str) -> Option<&str> {
    if let Some(ending) = CONTRACTIONS.iter().find(|c| text.starts_with(**c)) {
        return Some(&text[..ending.len()]);
    }
    let kind = |c: char| match c {
        _ if c.is_whitespace() => 0,
        _ if c.is_alphabetic() => 1,
        _ if c.is_numeric() => 2,
        _ => 3,
    };
    let body = text.strip_prefix(' ').unwrap_or(text);
    let own = body.chars().next().map(kind);
    if let Some(own) = own.filter(|k| *k > 0) {
        let long: usize = body
            .chars()
            .take_while(|c| kind(*c) == own)
            .map(char::len_utf8)
            .sum();
        return Some(&text[..text.len() - body.len() + long]);
    }
    let spaces: usize = text
        .chars()
        .take_while(|c| kind(*c) == 0)
        .map(char::len_utf8)
        .sum();
    let last = text[..spaces].chars().next_back()?;
    // The last space before a word is the word's.
    let before = spaces - last.len_utf8();
    let end = if spaces < text.len() && before > 0 {
        before
    } else {
        spaces
    };
    Some(&text[..end])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// As large as the English one, of numbers.
    pub fn english() -> Vocabulary {
        let lines: Vec<String> = (0..PLAIN).map(|n| n.to_string()).collect();
        Vocabulary::parse(&lines.join("\n"), 51_864).unwrap()
    }

    /// All bytes, and a few words.
    fn small() -> Vocabulary {
        let mut tokens: Vec<Vec<u8>> = (0..=255).map(|b| vec![b]).collect();
        let words = ["th", " t", "the", " th", " the", "he", "((", " (", " -"];
        tokens.extend(words.map(|w| w.as_bytes().to_vec()));
        // Two of a note's three bytes.
        tokens.push(vec![0xe2, 0x99]);
        Vocabulary::of(&tokens, 266 + OTHER_MARKS + 99).unwrap()
    }

    fn number(vocabulary: &Vocabulary, text: &str) -> u32 {
        vocabulary.find(text.as_bytes()).unwrap()
    }

    #[test]
    fn marks_lie_behind_the_plain_tokens_in_openais_order() {
        let lines: Vec<String> = (0..PLAIN).map(|n| n.to_string()).collect();
        let text = lines.join("\n") + "\n\n<|startoftranscript|>";
        let english = Vocabulary::parse(&text, 51_864).unwrap();
        let many = Vocabulary::parse(&text, 51_865).unwrap();
        let large = Vocabulary::parse(&text, 51_866).unwrap();

        assert_eq!((english.end(), english.start()), (50_256, 50_257));
        assert_eq!(english.no_timestamps(), 50_362);
        assert_eq!((many.end(), many.start()), (50_257, 50_258));
        assert_eq!(many.languages(), 50_259..50_358);
        assert_eq!((many.translate(), many.transcribe()), (50_358, 50_359));
        assert_eq!((many.previous(), many.no_speech()), (50_361, 50_362));
        assert_eq!(many.no_timestamps(), 50_363);
        assert_eq!(large.languages().len(), 100);
        assert_eq!(large.no_timestamps(), 50_364);
        assert_eq!(many.token(50_255), b"50255");
        assert_eq!(
            (many.token(50_256), many.token(50_257)),
            (&b""[..], &b""[..])
        );
        assert!(many.suppressed().contains(&50_256));
    }

    #[test]
    fn bytes_are_joined_in_the_order_of_the_tokens_numbers() {
        let vocabulary = small();

        assert_eq!(vocabulary.encode(" the"), [number(&vocabulary, " the")]);
        // "th" is joined before "he", and is no end of a longer one here.
        let expected = ["th", "x", "he"].map(|t| number(&vocabulary, t));
        assert_eq!(vocabulary.encode("thxhe"), expected);
        let text: Vec<u8> = vocabulary
            .encode("the Ünïcode's 42!  \n end ")
            .iter()
            .flat_map(|t| vocabulary.token(*t).to_vec())
            .collect();
        assert_eq!(text, "the Ünïcode's 42!  \n end ".as_bytes());
    }

    #[test]
    fn a_character_of_the_alphabet_is_a_byte() {
        let alphabet = alphabet();
        let byte = |c: char| alphabet[c as usize];

        assert_eq!(alphabet.iter().flatten().count(), 256);
        assert_eq!(
            (byte('a'), byte('\u{120}'), byte('\u{10a}')),
            (Some(97), Some(32), Some(10))
        );
        assert_eq!((byte(' '), byte('\u{143}')), (None, Some(0xad)));
    }

    #[test]
    fn words_numbers_signs_and_spaces_are_pieces() {
        let mut pieces = Vec::new();
        let mut rest = "I'll say  42 times: no!  ";
        while let Some(piece) = first_piece(rest) {
            pieces.push(piece);
            rest = &rest[piece.len()..];
        }

        assert_eq!(
            pieces,
            [
                "I", "'ll", " say", " ", " 42", " times", ":", " no", "!", "  "
            ]
        );
    }

    #[test]
    fn signs_for_what_is_not_speech_are_suppressed() {
        let vocabulary = small();
        let suppressed = |text: &str| vocabulary.suppressed().contains(&number(&vocabulary, text));

        assert!(suppressed("("));
        assert!(suppressed("(("));
        assert!(suppressed(" ("));
        assert!(suppressed(" -"));
        assert!(vocabulary.suppressed().contains(&265));
        assert!(!suppressed("-"));
        assert!(!suppressed("."));
    }

    #[test]
    fn a_property_that_is_damaged_is_refused_with_the_place() {
        assert!(
            Vocabulary::parse("a\nb c", 51_864)
                .unwrap_err()
                .contains("a token 1 ")
        );
        assert!(
            Vocabulary::parse("a", 51_864)
                .unwrap_err()
                .contains("has 1 tokens")
        );
        let twice = Vocabulary::of(&[b"a".to_vec(), b"a".to_vec()], 3000).unwrap_err();
        assert!(twice.contains("that are the same"), "{twice}");
    }
}
