"""Made-up text messages, for trying the whole path with no data at hand and no network.

Each message is a template of ours with its gaps filled from word lists. Phone numbers are of the range that
Ofcom keeps for drama (07700 900000 to 900999), addresses of the domains that RFC 2606 keeps for examples.
"""

from __future__ import annotations

import random
import re

SYNTHETIC_NOTE = (
    "These messages are synthetic: made from a few templates. A classifier trained on them has learned the templates,"
    " and figures measured on them say nothing about real messages."
)
SPAM_SHARE = 0.13
"""The share of spam, as in the SMS Spam Collection (747 of 5,574)."""

_WORDS = {
    "name": "Anna Ben Carla Dev Elif Femi Grace Hugo Ines Jonas Kofi Lena Mira Nils Olga Priya Rosa Sam Tara Yusuf",
    "place": "the library|the station|work|the gym|mum's|the harbour|the pub|school|the airport|the park|town|gran's",
    "time": "6|7ish|half past five|noon|8.30|quarter to nine|ten|about 4|5.15|eleven",
    "day": "today|tomorrow|on Monday|on Tuesday|on Friday|this weekend|on Sunday|tonight|next week",
    "food": "pizza|soup|a curry|noodles|pancakes|the leftovers|salad|fish and chips|some rice|a cake",
    "thing": "charger|umbrella|blue jacket|maths book|bike lock|spare key|guitar|camera|laptop|drill|tent",
    "mood": "so tired|really happy|a bit worried|starving|bored|on my way|still in bed|nearly done|running late",
    "event": "match|exam|meeting|concert|wedding|interview|rehearsal|lesson|driving test|party|film",
    "amount": "5|8|12|20|35|40|60|75|150|250|400|500|900|1000|2000|5000",
    "shop": "Brightmart|Nova Mobile|Kestrel Energy|Palm Travel|Oakline|QuickCash|StarTunes|Velo Direct|Meridian Bank",
    "prize": "voucher|smartphone|holiday for two|tablet|cash award|shopping card|games console|spa weekend",
    "hurry": "today|now|before midnight|within 24 hours|while it lasts|by Friday",
    "service": "ringtones|broadband|insurance|loan|energy plan|phone contract|streaming pass|credit card",
    "site": "example.com|example.net|example.org",
    "greeting": "Hi|Hey|Hello|hiya|Morning|Evening all",
    "closing": "x|xx|thanks!|see you|:)|lol|love you|let me know|cheers|no rush|speak soon|haha",
}

_HAM = """
{greeting} {name}, are you still coming to {place} {day}?
I'm {mood}, can we make it {time} instead of {time}?
Did you find my {thing}? I think I left it at {place}
{greeting}, {mood}. How was the {event}?
We're having {food} {day}, come over if you like
Bus is stuck near {place}, I'll be there at {time}
{name} says the {event} is {day} at {time}, shall we go together?
Can you bring the {thing} when you come to {place}?
Don't forget {food} for {name}, the shop by {place} closes at {time}
ok, will ask {name} about the {thing} and tell you {day}
Good luck with the {event} {day}! Thinking of you
Sorry I missed your call, was in the {event}. Ring me at {time}?
That {event} was great, {name} laughed the whole way home
No worries about the {thing}, I'll get it from {place} {day}
What shall I cook {day}? I can do {food} or {food}
You left before the {event} ended, {name} was asking for you
Is {name} at {place}? Phone is off and I'm {mood}
Just landed, {mood}. Picking up {food} and then going to {place}
{greeting} {name}, I owe you £{amount} for the {event}, will pay you back {day}
My new number is {phone}, please tell {name} too
Call the plumber on {phone}, he can come {day} at {time}
Tickets for the {event} are £{amount} each, should I book? They go fast
Are you free {day}? {name} won two tickets for the {event}
Photos from the {event} are on {site}/{code}, have a look
Bank says the £{amount} from {name} arrived, so the {thing} is paid
Your appointment is {day} at {time}. Please reply if you cannot come or call {phone}
Landlord wants £{amount} now for the {thing}, urgent, can you call him on {phone}?
{shop} delivered the {thing} to {name} by mistake, can you collect it?
I got a message that I won a {prize}, surely a scam, deleting it
Special offer at {shop}, the {thing} is only £{amount}, shall I get you one?
"""

_SPAM = """
You have won a {prize} worth £{amount}! Claim {hurry} at {site}/{code}
Congratulations! Your number was chosen for a {prize}. Call {phone} {hurry}
FREE {service} for a month from {shop}! Text YES to {short} {hurry}. Costs £{amount} a week after
{shop}: your account is on hold. Confirm your details {hurry} at {site}/{code}
Need cash? {shop} lends up to £{amount} {hurry}, no checks. Call {phone}
Your parcel is waiting. Pay a fee of £{amount} at {site}/{code} {hurry}
Final notice: unclaimed {prize} in your name. Ring {phone} quoting {code}
Cheap {service} from £{amount}! Reply STOP to {short} to opt out
Singles near you want to chat. Text MEET to {short}, £{amount} per message
{shop} customer, you are owed a refund of £{amount}. Claim it: {site}/{code}
Earn £{amount} a day from home, no experience. Write to {phone} {hurry}
URGENT! We tried to reach you about your {prize}. Call {phone}
Exclusive {service} deal for {name}: save £{amount}, order {hurry} on {site}/{code}
Double your money: put £{amount} in with {shop} and get twice as much {hurry}
Win a {prize}! Answer one question: text A or B to {short}. 18+ only
Last chance to switch your {service}, {shop} pays you £{amount}. {phone}
Your {service} ends {day}. Renew on {site}/{code} or lose your number
Hi mum, I broke my phone, this is my new number. Can you help me pay for the {thing} {day}?
{greeting}, is this {name}? We met at {place}, write to me here: {phone}
{greeting} {name}, I saw your profile and would like to talk. Are you free {day}?
Good day, I have work for you {day}, easy and well paid. Are you interested?
{name} sent you a private photo, look before it is gone {site}/{code}
We noticed that someone signed in from {place}. Was it you? {site}/{code}
Hello dear, I am {mood} and need someone to trust with £{amount}, answer me {hurry}
"""

# Nobody can tell these by their words: no classifier is right about all of them.
_EITHER = """
{greeting} {name}, my new number is {phone}
{greeting} {name}, are you free {day}?
Call me on {phone} {hurry}
Please ring {phone} about the {thing}
You left your {thing} at {place}, call {phone}
Have a look at {site}/{code}
Can you send the £{amount} {day}?
It's {name}, write to me here: {phone}
"""
_SHORTHAND = {
    "you": "u",
    "are": "r",
    "please": "pls",
    "tomorrow": "tmrw",
    "and": "&",
    "to": "2",
    "for": "4",
    "about": "abt",
}


def synthetic_messages(*, seed: int = 0, n: int = 600) -> list[tuple[str, str]]:
    """Return ``n`` synthetic pairs (label, text), "ham" or "spam", in random order; the same for the same seed.

    As in real collections 13 % are spam (``SPAM_SHARE``, rounded, at least one), a few messages come twice, some ham
    has prices, phone numbers and offers, some spam reads like a friend, and about 3 in 20 spam messages cannot be told
    from ham by their words. See ``SYNTHETIC_NOTE``: no figure measured
    on them says anything about real messages. Raises ValueError if ``n`` is below 2.
    """
    if n < 2:
        raise ValueError(f"n must be at least 2, one message of each label, got {n}")
    draw = random.Random(seed)
    n_spam = max(1, round(n * SPAM_SHARE))
    labels = ["spam"] * n_spam + ["ham"] * (n - n_spam)
    draw.shuffle(labels)
    return [(label, _message(draw, is_ham=label == "ham")) for label in labels]


def _message(draw: random.Random, *, is_ham: bool) -> str:
    templates = _EITHER if draw.random() < (0.05 if is_ham else 0.15) else _HAM if is_ham else _SPAM
    template = draw.choice(templates.strip().splitlines())
    text = re.sub(r"{(\w+)}", lambda gap: _filled(draw, gap[1]), template)
    if draw.random() < 0.3:
        text = f"{_filled(draw, 'greeting')}, {text}" if not template.startswith("{greeting}") else text
    if draw.random() < (0.4 if is_ham else 0.1):  # a sign of ham, not a proof
        text = f"{text} {_filled(draw, 'closing')}"
    if draw.random() < 0.25:
        text = re.sub(r"\w+", lambda word: _SHORTHAND.get(word[0].lower(), word[0]), text)
    style = draw.random()
    if style < 0.2:
        return text.lower()
    return text.upper() if style > (0.98 if is_ham else 0.9) else text


def _filled(draw: random.Random, gap: str) -> str:
    if gap == "phone":
        return f"07700 900{draw.randrange(1000):03}"
    if gap == "short":
        return str(draw.randrange(60_000, 90_000))
    if gap == "code":
        return "".join(draw.choices("abcdefghjkmnpqrstuvwxyz23456789", k=5))
    words = _WORDS[gap]
    return draw.choice(words.split("|") if "|" in words else words.split())
