// SPDX-License-Identifier: MPL-2.0
//! Small words that steer where a line or a cue may break, by language.
//!
//! Two lists a language: words that lean on the next one (articles, prepositions, pronouns,
//! auxiliaries, negations), after which a break reads badly; and words that open a new phrase
//! (conjunctions, prepositions), before which a break reads well. Languages without a list break by
//! punctuation and pauses only.

/// The two lists of one language, in lower case.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FunctionWords {
    leaning: &'static [&'static str],
    opening: &'static [&'static str],
}

impl FunctionWords {
    /// The lists of `language`, an ISO 639-1 code; region suffixes are ignored.
    pub fn of(language: &str) -> Self {
        let code = language.split(['-', '_']).next().unwrap_or_default();
        LISTS
            .iter()
            .find(|(name, _)| code.eq_ignore_ascii_case(name))
            .map(|&(_, lists)| lists)
            .unwrap_or_default()
    }

    /// Whether a break after `word` parts it from what it leans on. `word` is lower case, bare.
    pub fn leans(&self, word: &str) -> bool {
        self.leaning.contains(&word)
    }

    /// Whether a break before `word` comes at the start of a phrase.
    pub fn opens(&self, word: &str) -> bool {
        self.opening.contains(&word)
    }
}

const LISTS: &[(&str, FunctionWords)] = &[
    (
        "en",
        FunctionWords {
            leaning: &[
                "a", "an", "the", "of", "to", "in", "on", "at", "by", "for", "with", "from", "i",
                "you", "he", "she", "it", "we", "they", "my", "your", "his", "her", "our", "their",
                "is", "are", "was", "were", "be", "have", "has", "had", "will", "would", "can",
                "do", "not", "very", "and",
            ],
            opening: &[
                "and", "but", "or", "because", "that", "which", "who", "when", "where", "while",
                "if", "so", "than", "as", "of", "to", "in", "on", "at", "by", "for", "with",
                "from", "about", "after", "before", "into", "over", "under", "through",
            ],
        },
    ),
    (
        "de",
        FunctionWords {
            leaning: &[
                "der", "die", "das", "den", "dem", "des", "ein", "eine", "einen", "einem", "einer",
                "in", "im", "an", "am", "auf", "mit", "von", "vom", "zu", "zum", "zur", "für",
                "bei", "aus", "ich", "du", "er", "sie", "es", "wir", "ihr", "ist", "sind", "war",
                "hat", "nicht", "sehr", "und", "mein",
            ],
            opening: &[
                "und", "aber", "oder", "denn", "weil", "dass", "wenn", "als", "ob", "obwohl",
                "damit", "während", "mit", "von", "für", "bei", "aus", "nach", "zu", "in", "auf",
                "an", "über", "unter",
            ],
        },
    ),
    (
        "fr",
        FunctionWords {
            leaning: &[
                "le", "la", "les", "un", "une", "des", "du", "de", "au", "aux", "à", "en", "dans",
                "sur", "pour", "par", "avec", "je", "tu", "il", "elle", "on", "nous", "vous",
                "ils", "elles", "mon", "ma", "mes", "son", "sa", "ses", "est", "sont", "a", "ont",
                "ne", "pas", "très", "et",
            ],
            opening: &[
                "et", "mais", "ou", "car", "donc", "que", "qui", "quand", "où", "si", "comme",
                "parce", "pour", "par", "avec", "dans", "sur", "sans", "chez", "vers", "à", "de",
            ],
        },
    ),
    (
        "es",
        FunctionWords {
            leaning: &[
                "el", "la", "los", "las", "un", "una", "unos", "unas", "de", "del", "a", "al",
                "en", "con", "por", "para", "yo", "tú", "él", "ella", "mi", "tu", "su", "sus",
                "me", "te", "se", "le", "lo", "es", "son", "ha", "he", "no", "muy", "y",
            ],
            opening: &[
                "y", "e", "pero", "o", "porque", "que", "cuando", "donde", "si", "como", "aunque",
                "para", "por", "con", "sin", "en", "de", "desde", "hasta", "sobre", "entre",
            ],
        },
    ),
    (
        "it",
        FunctionWords {
            leaning: &[
                "il", "lo", "la", "i", "gli", "le", "un", "uno", "una", "di", "del", "della", "a",
                "al", "alla", "da", "in", "nel", "nella", "con", "su", "per", "io", "tu", "lui",
                "lei", "mi", "ti", "si", "ci", "è", "sono", "ha", "ho", "non", "molto", "e",
            ],
            opening: &[
                "e", "ma", "o", "perché", "che", "quando", "dove", "se", "come", "mentre", "per",
                "con", "senza", "in", "di", "da", "su", "tra", "fra", "dopo", "prima",
            ],
        },
    ),
    (
        "pt",
        FunctionWords {
            leaning: &[
                "o", "a", "os", "as", "um", "uma", "de", "do", "da", "dos", "das", "em", "no",
                "na", "com", "por", "para", "ao", "eu", "ele", "ela", "meu", "minha", "seu", "sua",
                "me", "se", "é", "são", "foi", "não", "muito", "e",
            ],
            opening: &[
                "e", "mas", "ou", "porque", "que", "quando", "onde", "se", "como", "embora",
                "para", "por", "com", "sem", "em", "de", "desde", "até", "sobre", "entre",
            ],
        },
    ),
    (
        "nl",
        FunctionWords {
            leaning: &[
                "de", "het", "een", "van", "in", "op", "aan", "met", "voor", "bij", "te", "ik",
                "je", "jij", "hij", "zij", "ze", "we", "wij", "mijn", "zijn", "haar", "is", "was",
                "heeft", "niet", "heel", "en",
            ],
            opening: &[
                "en", "maar", "of", "want", "omdat", "dat", "die", "als", "toen", "terwijl", "met",
                "van", "voor", "door", "over", "onder", "naar", "bij", "na",
            ],
        },
    ),
    (
        "sv",
        FunctionWords {
            leaning: &[
                "en", "ett", "den", "det", "de", "i", "på", "av", "till", "för", "med", "om",
                "jag", "du", "han", "hon", "vi", "min", "din", "sin", "är", "var", "har", "inte",
                "att", "och",
            ],
            opening: &[
                "och", "men", "eller", "för", "att", "som", "när", "där", "om", "eftersom",
                "medan", "med", "till", "från", "av", "på", "i", "under", "över",
            ],
        },
    ),
    (
        "pl",
        FunctionWords {
            leaning: &[
                "w", "we", "z", "ze", "na", "do", "od", "o", "u", "po", "za", "dla", "przy", "ja",
                "ty", "on", "ona", "my", "się", "jest", "są", "był", "nie", "bardzo", "i", "mój",
            ],
            opening: &[
                "i", "a", "ale", "lub", "albo", "bo", "że", "który", "która", "kiedy", "gdy",
                "gdzie", "jeśli", "jak", "aby", "żeby", "z", "dla", "przez", "od", "do",
            ],
        },
    ),
    (
        "ru",
        FunctionWords {
            leaning: &[
                "в",
                "во",
                "на",
                "с",
                "со",
                "к",
                "ко",
                "о",
                "об",
                "у",
                "из",
                "от",
                "до",
                "по",
                "за",
                "для",
                "при",
                "я",
                "ты",
                "он",
                "она",
                "мы",
                "вы",
                "они",
                "мой",
                "его",
                "её",
                "не",
                "ни",
                "очень",
                "и",
            ],
            opening: &[
                "и",
                "а",
                "но",
                "или",
                "потому",
                "что",
                "чтобы",
                "который",
                "которая",
                "когда",
                "где",
                "если",
                "как",
                "хотя",
                "из",
                "от",
                "для",
                "через",
                "после",
                "перед",
            ],
        },
    ),
    (
        "uk",
        FunctionWords {
            leaning: &[
                "в", "у", "на", "з", "із", "до", "від", "по", "за", "для", "при", "про", "я", "ти",
                "він", "вона", "ми", "ви", "вони", "мій", "його", "її", "не", "дуже", "і", "й",
            ],
            opening: &[
                "і",
                "а",
                "але",
                "або",
                "бо",
                "що",
                "щоб",
                "який",
                "яка",
                "коли",
                "де",
                "якщо",
                "як",
                "хоча",
                "для",
                "через",
                "після",
                "перед",
                "від",
                "до",
            ],
        },
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_does_not_hide_the_language() {
        assert!(FunctionWords::of("en-GB").leans("the"));
        assert!(FunctionWords::of("DE").opens("weil"));
        assert!(!FunctionWords::of("ja").leans("the"));
    }

    #[test]
    fn lists_stay_small_and_in_lower_case() {
        for (code, lists) in LISTS {
            for list in [lists.leaning, lists.opening] {
                assert!(list.len() <= 40, "{code} has {}", list.len());
                assert!(list.iter().all(|w| *w == w.to_lowercase()), "{code}");
            }
        }
    }
}
