"""Rows in the forms of the published data sets, made up to meet each rule of their prompts."""

from __future__ import annotations

from typing import Any

Rows = list[dict[str, Any]]

_ARC = [
    {
        "question": "Which is a gas?",
        "choices": {"text": ["iron", "air", "ice"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    },
    {"question": " What flows? ", "choices": {"text": ["water", "a rock"], "label": ["1", "2"]}, "answerKey": "1"},
    {"question": "Naïve?", "choices": {"text": ["où", "là-bas", "no", "so"], "label": [*"ABCD"]}, "answerKey": "D"},
]

# By the task; the first two are the few-shot examples of the others.
ROWS: dict[str, Rows] = {
    "lambada_openai": [
        {"text": "He took the key and opened the door"},
        {"text": "“Yes,” she said.\n\n“It is late \n\nnow"},
        {"text": "two  words"},
    ],
    "wikitext": [
        {
            "page": ' = Title = \n \n A 5 @-@ 3 win , the first ; see " the list " '
            "( by N people ) . It 's 1 @,@ 0 ° so \n"
        },
        {
            "page": " = = Part = = \n The players ' cup : [ one ] { two } ! \n"
            " = = = S = = = \n It 's ' so ' 2 @.@ 5 ? Yes"
        },
        {"page": "Plain text.\n\nNothing to change: 'quoted words' stay – naïve 語 as they are."},
    ],
    "hellaswag": [
        {
            "activity_label": "Skiing",
            "ctx_a": "A man  skis [title] down.",
            "ctx_b": "the Man",
            "endings": ["falls [step] off.", "flies  away", "sits", "is  a bird"],
            "label": "2",
        },
        {
            "activity_label": "Cooking",
            "ctx_a": " [header] How to cook [title] Boil water",
            "ctx_b": "",
            "endings": ["Add salt", " Add [substeps] tea ", "Wait", "Go"],
            "label": "0",
        },
        {"activity_label": "Rest", "ctx_a": "A", "ctx_b": "é", "endings": ["a", "b", "c", "d"], "label": "3"},
    ],
    "piqa": [
        {"goal": "Open a jar", "sol1": "Twist the lid.", "sol2": "Eat the lid.", "label": 0},
        {"goal": "Cut  bread ", "sol1": "use a spoon", "sol2": " use a knife", "label": 1},
        {"goal": "", "sol1": "ñ", "sol2": "nn", "label": 0},
    ],
    "winogrande": [
        {"sentence": "The cup fit the box, as the _ was small.", "option1": "cup", "option2": "box", "answer": "1"},
        {"sentence": "_ thanked Ann.", "option1": "Bob", "option2": "Carla", "answer": "2"},
        {"sentence": "He put _  down_ now", "option1": "it", "option2": "them", "answer": "2"},
    ],
    "wsc273": [
        {
            "text": "The trophy does not fit the case because it is big.",
            "pronoun": "it",
            "pronoun_loc": 41,
            "options": ["The trophy", "the case"],
            "label": 0,
        },
        {
            "text": "Ann asked Mary. Her book was lost.",
            "pronoun": "Her",
            "pronoun_loc": 16,
            "options": ["Ann", "Mary"],
            "label": 1,
        },
        {
            "text": "I met them. They sang.",
            "pronoun": "They",
            "pronoun_loc": 12,
            "options": ["The men", "My friends"],
            "label": 1,
        },
    ],
    "arc_easy": _ARC,
    "openbookqa": [
        {"question_stem": row["question"], "choices": row["choices"], "answerKey": row["answerKey"]} for row in _ARC
    ],
    "boolq": [
        {"passage": "Ice is cold.", "question": "is ice hot", "label": 0},
        {"passage": "Tea is\nhot.", "question": "is tea hot", "label": 1},
        {"passage": "", "question": "is this empty", "label": 1},
    ],
    "copa": [
        {"premise": "It rained. ", "choice1": "I got wet.", "choice2": "I flew.", "question": "effect", "label": 0},
        {"premise": "I slept.", "choice1": "I was late!", "choice2": "I was tired.", "question": "cause", "label": 1},
        {"premise": "She fell", "choice1": "Ice.", "choice2": "Ça va.", "question": "cause", "label": 0},
    ],
    "sciq": [
        {
            "question": "What is hot?",
            "distractor1": "ice",
            "distractor2": "snow",
            "distractor3": "frost",
            "correct_answer": "fire",
            "support": " Fire burns.",
        },
        {
            "question": "Which is largest?",
            "distractor1": "an ant",
            "distractor2": "a bee",
            "distractor3": "a fly",
            "correct_answer": "a whale",
            "support": "",
        },
        {
            "question": "Q",
            "distractor1": "aa",
            "distractor2": "ää",
            "distractor3": "a",
            "correct_answer": "a b c",
            "support": "\n\nS",
        },
    ],
    "mathqa": [
        {"Problem": "1 + 1 = ?", "options": "a ) 1 , b ) 2 , c ) 3 , d ) 4 , e ) 5", "correct": "b"},
        {"Problem": "half of 9", "options": "a ) 4.5 , b ) 3 , 5 , c ) rs . 2 , d ) 1 : 2 , e ) none", "correct": "a"},
        {"Problem": "x", "options": "a ) 10 km / h , b ) 20 , c ) 30 , d ) 40 , e ) 5 ,", "correct": "e"},
    ],
    "pubmedqa": [
        {"QUESTION": "Does it work?", "CONTEXTS": ["We tried.", "It did."], "final_decision": "yes"},
        {"QUESTION": "Is it safe?", "CONTEXTS": ["Unknown."], "final_decision": "maybe"},
        {"QUESTION": "Why?", "CONTEXTS": ["A", "B", "C"], "final_decision": "no"},
    ],
    "mmlu_high_school_physics": [
        {"question": "What is mass? ", "choices": ["a", "b", "c", "d"], "answer": 2, "subject": "high_school_physics"},
        {"question": "\nUnit of force", "choices": ["N", "J", "W", "K"], "answer": 0, "subject": "high_school_physics"},
        {"question": "Speed?", "choices": ["1 ", "two", "3", "4"], "answer": 3, "subject": "high_school_physics"},
        {"question": "Light?", "choices": ["u", "v", "w", "x"], "answer": 1, "subject": "high_school_physics"},
    ],
}
