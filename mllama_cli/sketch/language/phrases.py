# ruff: noqa: E501
"""How people ask: templates for ``language.expand``. ``[a|b]`` are alternatives, ``{x}`` is filled in."""

PICTURE = "[picture|image|drawing|picture|image|sketch]"
IN_IT = f"[|||in the {PICTURE}|in this {PICTURE}|here|on the page|in it]"
SHOWN = f"[are there|do you see|can you see|are in the {PICTURE}|are in this {PICTURE}|are here|do you count|are shown|does the {PICTURE} have|are visible]"

DESCRIBE = (
    "Describe this image.",
    "Describe this image.",
    f"Describe [the|this] {PICTURE}.",
    f"[What is|What's] [in|on|shown in] [the|this] {PICTURE}?",
    "[What is|What's] this?",
    f"What [do|can] you see [|here|in this {PICTURE}|in the {PICTURE}]?",
    f"What does [the|this] {PICTURE} show?",
    f"[Write|Give me|Make|Give] a [|short ]caption [|for this {PICTURE}|for the {PICTURE}].",
    f"[Caption|Caption this|Caption this {PICTURE}|Caption the {PICTURE}].",
    "[Describe|Describe it|Describe this|Please describe|Describe what you see|Description?|Describe the scene].",
    f"[Tell me|Say] what [is|you see] in [the|this] {PICTURE}.",
    f"[Which|What] [shapes|objects|things|figures|items] {SHOWN}?",
    f"[Tell me about|Explain|Summarize|Look at] [the|this] {PICTURE}.",
    f"What [is|have I|did I|has somebody] [drawn|drawn] [here|in this {PICTURE}]?",
    "What am I looking at?",
    "What did I draw?",
    f"[What are|List] [the|all] [shapes|objects|things|figures] {IN_IT}.",
    "[Identify|Name] [the|all the] [shapes|objects|things] [|you see|that you see] " + IN_IT + ".",
    "[What's here|What is here|What is there|What is there to see|What is drawn here]?",
    f"[A|One] [short |]description of [the|this] {PICTURE}[|, please].",
)
LIST = (
    "[List|Name|Describe|Go through|Read out] [the shapes|everything|all shapes|the objects|all objects] from left to right.",
    f"[What is|What's] in [the|this] {PICTURE}, from left to right?",
    "[Going|Looking] from left to right, what [do you see|is there|are the shapes]?",
    "From left to right, [what are the shapes|what do you see|name the shapes|list the objects].",
)
DETAIL = (
    f"Describe [the|this] {PICTURE} in detail.",
    f"[Where|At what place] is [everything|each shape|every shape|each object|each thing] {IN_IT}?",
    "[Describe|Say|Tell me] [what is where|where everything is|where each shape is|what stands where].",
    f"Give [me |]a detailed [description|caption] of [the|this] {PICTURE}.",
    "What is where?",
    "[Describe|List] [each|every] [shape|object] and [its place|where it is|its position|its location].",
)
COUNT = (
    f"How many {{things}} {SHOWN}?",
    f"How many {{things}} {SHOWN}?",
    "How many {things}?",
    f"Count the {{things}}[| {IN_IT}].",
    "[Count|Count all|Please count the|Can you count the] {things}.",
    f"[What is the|What's the|Tell me the|Give me the] number of {{things}} {IN_IT}?",
    "[The number|Number|Total number] of {things}?",
    f"[Say|Tell me] how many {{things}} {SHOWN}.",
    f"How many {{things}} [are drawn|did I draw|exist|are there in total|are there altogether] {IN_IT}?",
    "{things}: how many?",
    f"I see [some|a few] {{things}}. How many {SHOWN}?",
    f"[How large|How big] is the number of {{things}} {IN_IT}?",
)
COUNT_COLOURS = (
    f"How many [|different] colours {SHOWN}?",
    "How many [|different] colours?",
    "How many colours [are used|did I use|were used]?",
    "[Count|Count the] colours.",
    f"[What is|What's] the number of colours {IN_IT}?",
)
COLOUR = (
    "[What|Which] colour is the {thing}?",
    "[What|Which] colour is the {thing}?",
    "[What is|What's|Name|Tell me|Give me] the colour of the {thing}?",
    "[What|Which] colour [does|has] the {thing} [have|have]?",
    "The {thing} is [what|which] colour?",
    "[Is the {thing} red or blue, or what|In which colour is the {thing} drawn|In what colour is the {thing}]?",
    "[Colour|The colour] of the {thing}?",
    f"[What|Which] colour is the {{thing}} {IN_IT}?",
    "How is the {thing} coloured?",
    "[Look at the {thing}. What|About the {thing}: what|The {thing}, what] colour is it?",
    "[What|Which] colour [did I use|was used] for the {thing}?",
    "Tell me what colour the {thing} is.",
)
COLOURS_OF = (
    "[What|Which] colour are the {things}?",
    "[What|Which] colours [are|do] the {things} [|have]?",
    "[What are|What're|Name|Tell me] the colours of the {things}?",
    "The {things} are [what|which] colour?",
    f"[What|Which] colour are the {{things}} {IN_IT}?",
)
ALL_COLOURS = (
    f"[What|Which] colours {SHOWN}?",
    "[What|Which] colours [are|were] used?",
    f"[List|Name] [the|all|all the] colours {IN_IT}.",
    f"[What|Which] colours does [the|this] {PICTURE} have?",
)
GROUND_COLOUR = (
    "[What|Which] colour is the [background|paper|ground|page]?",
    "[What is|What's|Name] the [background colour|colour of the background|colour of the paper]?",
    "The background is [what|which] colour?",
    f"[What|Which] [background colour|colour of background] does [the|this] {PICTURE} have?",
)
TEXT_COLOUR = (
    "[What|Which] colour is the [text|word|writing|lettering]?",
    "[What is|What's] the colour of the [text|word|letters|writing]?",
    "[What|Which] colour are the letters?",
    "In [what|which] colour is the [text|word] [written|printed]?",
    "[What|Which] colour [does|has] the text have?",
)
SHAPE = (
    "[What|Which] shape is [the {colour} {one}|{colour}]?",
    "[What is|What's] the {colour} [thing|shape|object|one|figure|item]?",
    "[What is|What's] {colour} [|" + IN_IT + "]?",
    "[What|Which] [shape|figure|object|thing] is {colour}?",
    "[What|Which] [shapes|things|objects] are {colour}?",
    "[What|Which] shape [does|has] the {colour} [thing|object|one] have?",
    "[Name|Tell me|Identify] the {colour} [shape|thing|object].",
    "[What is|What's] the shape of the {colour} [thing|object|one]?",
    "The {colour} [thing|object|shape|one] is what?",
    "[What is|Which shape is|What did I draw|What was drawn] [drawn|painted|shown] in {colour}?",
    "[What kind of|Which kind of|What sort of] [shape|figure|thing|object] is [the {colour} one|{colour}]?",
    "[Look at the {colour} thing.|See the {colour} thing?] What is it?",
)
ONLY_SHAPE = (
    "[What|Which] shape is [this|it|that|shown|shown here]?",
    "[What|Which] [shape|figure] do you see?",
    "[Name|Identify] [this|the] shape.",
    "[What|Which] [kind|sort] of shape is [this|that|it]?",
    "[What's|What is] the name of [this|the] shape?",
)
ARROW = (
    "[Which|What] [way|direction] [does|is] the {thing} [point|pointing|points]?",
    "[Where|Where to|In which direction|In what direction] does the {thing} point?",
    "[What is|What's] the direction of the {thing}?",
    "[Where is the {thing} pointing|The {thing} points where|Which way is the {thing} facing]?",
)
WHERE = (
    "Where is the {thing}?",
    "[Where is|Where's] the {thing} [|located|placed|to be found|drawn]?",
    f"[Where is|Where's] the {{thing}} {IN_IT}?",
    "[Where|At what place] [do you see|can I find|can you see|did I draw] the {thing}?",
    "[What is|What's|Tell me|Give me] the [position|place|location] of the {thing}?",
    "In which [part|corner|area|place] [of the " + PICTURE + "|] is the {thing}?",
    "[Find|Locate] the {thing}.",
    "The {thing} is where?",
    "[Position|Location|Place] of the {thing}?",
    "[Tell me|Say|Can you tell me] where the {thing} is.",
    "[In which position|At which position|On which side|In which place] is the {thing}?",
    "Can you [find|locate|point out] the {thing}?",
)
WHERE_MANY = (
    "Where are the {things}?",
    f"[Where are|Where're] the {{things}} {IN_IT}?",
    "[Where|At what places] [do you see|can I find|can you see] the {things}?",
    "[What are|Tell me|Give me] the [positions|places|locations] of the {things}.",
    "[Find|Locate] the {things}.",
    "[Tell me|Say] where the {things} are.",
)
AT_CORNER = (
    "[What is|What's] [in the {zone}|in the {zone} corner|at the {zone}]?",
    "[What|Which] [shape|thing|object] is [in the {zone}|in the {zone} corner]?",
    "[What do you see|Is there anything|What is there|What can you see] in the {zone}?",
    "[Name|Describe|Identify] [the shape|the thing|what is] in the {zone} [|corner].",
)
AT_MIDDLE = (
    "[What is|What's] [in the middle|in the centre|at the centre|in the center]?",
    "[What|Which] [shape|thing|object] is in the [middle|centre]?",
    f"[What do you see|Is there anything|What is there] in the [middle|centre] [|of the {PICTURE}]?",
    "[Name|Describe|Identify] [the shape|the thing|what is] in the [middle|centre].",
)
AT_SIDE = (
    "[What is|What's] {side}?",
    "[What|Which] [shape|thing|object] is {side}?",
    "[What is|What's] the {most} [shape|thing|object]?",
    "[What|Which] [shape|thing|object] is [{most}|the {most} one|farthest {toward}]?",
    "[What do you see|What can you see|What is there] {side}?",
    "[Name|Describe|Identify] [the shape|the thing|what is] {side}.",
)
EXISTS = (
    "Is there {a_thing} {in_it}?",
    "Is there {a_thing}?",
    "[Do|Can] you see {a_thing} {in_it}?",
    "[Are there|Do you see|Can you see] any {things} {in_it}?",
    "Any {things} {in_it}?",
    f"Does [the|this] {PICTURE} [have|contain|show|include] {{a_thing}}?",
    "Are there {things}?",
    "[Is|Was] {a_thing} [drawn|shown|visible|present] {in_it}?",
    "[Did I draw|Have I drawn|Do I have] {a_thing}?",
    "There is {a_thing}, [right|isn't there|true or false|yes or no|correct]?",
    "{a_thing}: yes or no?",
    "[Check|Look] if there is {a_thing} {in_it}.",
)
WHICH_BIGGER = (
    "Which is {more}, the {one} or the {other}?",
    "[What is|What's] {more}, the {one} or the {other}?",
    "[Which|Which one] is {more}: the {one} or the {other}?",
    "[Which one|Which shape] of the {one} and the {other} is {more}?",
    "[Compare the {one} and the {other}: which is|Of the {one} and the {other}, which is|Between the {one} and the {other}, which is] {more}?",
    "[The|Is the] {one} or the {other}: which is {more}?",
)
IS_BIGGER = (
    "Is the {one} {more} than the {other}?",
    "Is the {one} [really |]{more} than the {other}?",
    "The {one} is {more} than the {other}, [right|true|isn't it|correct|yes or no]?",
    "[Would you say|Do you think|Is it true] that the {one} is {more} than the {other}?",
    "Compared [with|to] the {other}, is the {one} {more}?",
)
EXTREME = (
    "[Which|What] [shape|thing|object|one|figure] is [the |]{most}?",
    "[What is|What's] the {most} [shape|thing|object|figure|one]?",
    "[Name|Find|Show me|Tell me|Identify] the {most} [shape|thing|object].",
    f"[Which|What] is the {{most}} [shape|thing|object] {IN_IT}?",
    "The {most} [shape|thing|object]?",
    "[Which|What] is {most}?",
)
RELATION = (
    "[What is|What's] {relation} the {other}?",
    "[What|Which] [shape|thing|object] is {relation} the {other}?",
    "[What do you see|What can you see|What is there|What did I draw] {relation} the {other}?",
    "[Is there something|Is there anything|Is anything] {relation} the {other}?",
    "[Name|Describe|Identify] [the shape|the thing|what is] {relation} the {other}.",
    "{relation} the {other} [is|there is|I see] what?",
    "[Which|What] [one|shape] [stands|lies|sits] {relation} the {other}?",
)
IS_RELATED = (
    "Is the {one} {relation} the {other}?",
    "The {one} is {relation} the {other}, [right|true|isn't it|correct|yes or no]?",
    "[Would you say|Do you think|Is it true] that the {one} is {relation} the {other}?",
    "[Does|Is] the {one} [stand|standing|lie|placed] {relation} the {other}?",
)
SAID_RELATION = {
    "left of": "[to the left of|left of|to the left of|on the left of|on the left side of]",
    "right of": "[to the right of|right of|to the right of|on the right of|on the right side of]",
    "above": "[above|above|over|higher than|on top of]",
    "below": "[below|below|under|beneath|underneath|lower than]",
}
READ = (
    "What does it say?",
    f"What does [the|this] [{PICTURE}|text|card|sign|word|label|note|writing] say?",
    "[Read|Read out|Please read|Can you read|Read me] [the text|it|this|the word|what it says|the writing|the card|the sign].",
    f"[What is|What's] [written|printed|the text|the word|the writing] [|here|{IN_IT}]?",
    f"[What|Which] [text|word|words|letters] [is|are|do you see|is written|can you read] {IN_IT}?",
    "[What is|What's|What does] the [text|word|card] [|in the " + PICTURE + "|say]?",
    "What can you read [|here|in the " + PICTURE + "]?",
    "[Transcribe|Type out|Copy|Spell out|Extract] [the text|the word|what is written|this].",
    "[Tell me|Say] what [it says|is written|the text says|the card says|the sign says].",
    "OCR[|, please| this].",
    "[Is there any text|Can you see any text|Any text] [here|in the " + PICTURE + "|]?",
    "[How does the text read|What stands here|What stands there|What's it say|What do the letters say]?",
)
CHANGE = (
    "What changed?",
    "[What|Which] [has changed|is different|changed|is the change|is the difference]?",
    "[What|Which] [changed|is different|has changed] [between the two|between the pictures|between the images|in the second picture|in the second image|from the first to the second]?",
    "[Find|Spot|Name|Tell me|Describe|Show] the [difference|change].",
    "[How|In what] [do they differ|does the second picture differ|do the two pictures differ|is the second different]?",
    "[Compare|Compare the two|Compare the pictures|Compare the images|Compare these].",
    "[What's|What is] the difference [|between them|between the pictures|between the two images|between these]?",
    "[What happened|What did I change|What was changed|What is new] [|in the second picture|between the two pictures]?",
    "[Any|Are there any|Do you see any] [changes|differences]?",
    "Before and after: what changed?",
)
SAME = (
    "Are [the|these|the two] [pictures|images|drawings] [the same|equal|identical]?",
    "Are they [the same|equal|identical]?",
    "[Is the second picture|Is the second image] the same as the first?",
    "Do [the|these|the two] [pictures|images] show the same?",
)
CHANGE_NOW = (
    "What changed?",
    "[And now|Now]?",
    "[What|Which] [has changed|is different|changed] [now|here|this time|]?",
    "[What|Which] [changed|is different] from the [first|last|previous] [one|picture|image]?",
    "[And|] what is different [now|in this one|here]?",
    "Here is [another|the next|a second|a new] [one|picture|image]. What changed?",
    "[Compare it|Compare this|Compare] [with|to] the [last|previous|first] [one|picture].",
)
NTH = (
    f"[Describe|Caption] the {{nth}} {PICTURE}.",
    f"[What is|What's] in the {{nth}} {PICTURE}?",
    "What [do you see|is] in the {nth} one?",
    f"What does the {{nth}} {PICTURE} show?",
)
AS_JSON = (
    "{question} [Answer|Reply|Respond] [as|in|with] JSON with {names}.",
    "{question} [JSON|As JSON|Answer in JSON] with [the fields|the keys|fields] {names}.",
    "{question} [Give|Return|Write] {names} as JSON.",
    "{question} [As JSON|JSON|JSON fields|JSON keys]: {names}.",
    "{question} [Answer|Reply|Respond] with a JSON object: {names}.",
)
AS_ANY_JSON = "[Answer as|Answer in|Reply in|Respond with|As|Only|Give me|Return] JSON[.|, please.|]"
