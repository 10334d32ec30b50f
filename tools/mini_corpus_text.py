"""Sentences and short stories for the bundled corpora, from a small English grammar of everyday topics.

Every topic has its own people, verbs with their objects, and places. So a small language model has something to learn:
who does what to what, and where. A story keeps its topic and refers to its people by pronouns.
"""

import random

NAMES = {  # name -> pronoun
    "he": "Adam Bruno Carlos David Felix Henry Ivan Jonas Kenji Leon Marco Omar Peter Samuel Victor Walter".split(),
    "she": "Alice Bella Clara Diana Emma Fatima Greta Helen Irene Julia Laura Maria Nora Olga Rosa Sofia".split(),
}

# topic -> people; verb phrases "base/past: things"; places. Things carry their own adjectives and articles.
TOPICS = {
    "kitchen": (
        "the cook, the baker, the waiter, my grandmother, the young chef, our neighbor",
        """wash/washed: the dirty plates, the green apples, a large spoon, the copper pot
           cut/cut: the fresh bread, a ripe tomato, some yellow cheese, the chocolate cake
           bake/baked: a sweet pie, the brown bread, two dozen cookies, the chocolate cake
           taste/tasted: the hot soup, a slice of lemon, the sour milk, the thick sauce
           stir/stirred: the hot soup, the thick sauce, a bowl of rice, the melted butter
           burn/burned: the thick sauce, a pan of onions, the sweet potatoes, the breakfast""",
        "in the kitchen, on the stove, near the oven, at the long table, beside the sink",
    ),
    "garden": (
        "the gardener, a little girl, the old farmer, my uncle, the tired worker",
        """plant/planted: the red roses, a small tree, some carrot seeds, the tall sunflowers
           water/watered: the dry lawn, the tall sunflowers, a bed of lettuce, the red roses
           dig/dug: a deep hole, the soft soil, a narrow ditch
           pick/picked: the purple grapes, a basket of berries, the ripe pears, some wild flowers
           chase/chased: the black crows, a hungry rabbit, the white goose
           cover/covered: the soft soil, the young plants, a pile of leaves""",
        "in the garden, behind the barn, under the cherry tree, along the stone wall, by the gate",
    ),
    "harbor": (
        "the captain, a young sailor, the fisherman, the pirate, the swimmer, the harbor pilot",
        """sail/sailed: the wooden boat, a silver yacht, the old ferry
           repair/repaired: the torn net, the broken mast, the wooden boat, a rusty anchor
           catch/caught: a huge fish, three small crabs, the slippery eel, a gray shark
           drop/dropped: a rusty anchor, the heavy rope, the fishing line
           follow/followed: the silver dolphins, the northern star, a cargo ship, the rocky coast
           paint/painted: the lighthouse, the wooden boat, the blue cabin""",
        "in the harbor, across the bay, near the lighthouse, off the island, on the beach, at the dock",
    ),
    "school": (
        "the teacher, a shy student, the librarian, the clever pupil, the new principal, my sister",
        """read/read: a long poem, the history book, the science report, a funny story
           write/wrote: a long poem, the science report, a short letter, the final essay
           forget/forgot: the right answer, the math lesson, the wooden ruler, the history book
           explain/explained: the math lesson, a difficult question, the map of Africa, the new rule
           draw/drew: a perfect circle, the map of Africa, a purple dragon, the human heart
           learn/learned: the French alphabet, a difficult song, the new rule""",
        "in the classroom, at the library, before the exam, on the blackboard, during the lesson",
    ),
    "railway": (
        "the driver, the conductor, a nervous passenger, the engineer, the tall guard, the ticket clerk",
        """stop/stopped: the express train, the crowded bus, the steam engine
           miss/missed: the express train, the last tram, the early flight
           check/checked: every ticket, the signal lamp, the iron bridge, the brakes
           carry/carried: a leather suitcase, the mail bags, two heavy boxes, a folded umbrella
           cross/crossed: the iron bridge, the busy street, the frozen river, the border
           lose/lost: a leather suitcase, the train ticket, a folded umbrella""",
        "at the station, on the platform, near the tunnel, outside the city, between the tracks",
    ),
    "forest": (
        "the hunter, a gray wolf, the brown bear, the forest ranger, a sly fox, the quiet owl",
        """hear/heard: a strange noise, the distant thunder, the singing birds, a wild horse
           watch/watched: the bright moon, a family of deer, the falling snow, the squirrels
           find/found: a hidden path, the empty cave, a golden feather, some mushrooms
           climb/climbed: the steep hill, a giant oak, the snowy mountain
           hide/hid: the acorns, a dead mouse, the stolen honey
           light/lit: a small fire, the oil lantern, the dry branches""",
        "in the forest, beside the lake, under the stars, through the valley, near the waterfall",
    ),
    "workshop": (
        "the carpenter, a skilled mechanic, the inventor, the blacksmith, my grandfather, the builder",
        """build/built: a wooden chair, the brick house, a flying machine, the narrow stairs
           fix/fixed: the broken clock, a flat tire, the leaking roof, the noisy motor
           sharpen/sharpened: the kitchen knife, the long saw, a dull axe
           measure/measured: the oak board, the window frame, a piece of glass
           break/broke: the glass jar, a piece of glass, the old hammer
           test/tested: the electric motor, a flying machine, the new battery""",
        "in the workshop, on the bench, inside the garage, at the factory, behind the shed",
    ),
    "music": (
        "the singer, a famous pianist, the drummer, the dancer, a street musician, the orchestra",
        """play/played: the violin, a slow waltz, the silver flute, the grand piano, an ancient song
           sing/sang: a cheerful tune, an ancient song, the national anthem
           practice/practiced: a slow waltz, the difficult dance, the silver flute
           record/recorded: a new album, the winter concert, an ancient song
           enjoy/enjoyed: the loud applause, the winter concert, a glass of juice
           tune/tuned: the violin, a cheap guitar, the grand piano""",
        "on the stage, in the theater, after the concert, at the festival, in the village square",
    ),
    "market": (
        "the merchant, a rich lady, the butcher, the thief, a clever tailor, the shop owner",
        """sell/sold: a silk dress, the fresh eggs, a pound of coffee, the pearl necklace
           buy/bought: a silk dress, a pair of boots, some cotton shirts, the cheap carpet
           steal/stole: the pearl necklace, a gold coin, the merchant's purse, a ripe melon
           weigh/weighed: the fresh eggs, a pound of coffee, the smoked ham
           count/counted: the gold coins, the empty baskets, the paper money
           offer/offered: a fair price, a ripe melon, a warm blanket, the free samples""",
        "at the market, in the little shop, around the corner, next to the fountain, on the main street",
    ),
    "hospital": (
        "the doctor, a gentle nurse, the surgeon, the patient, the dentist, a worried mother",
        """visit/visited: the sick child, a lonely man, the injured soldier
           examine/examined: the swollen knee, the broken arm, a sore throat, the blood sample
           help/helped: the sick child, a blind woman, the injured soldier, the older patients
           treat/treated: a sore throat, the swollen knee, a high fever
           bring/brought: the bitter medicine, a clean towel, some warm tea, the wheelchair
           call/called: the ambulance, the police, a taxi, the family""",
        "at the hospital, in the waiting room, beside the bed, on the second floor, during the night",
    ),
    "office": (
        "the manager, a busy lawyer, the secretary, the reporter, the mayor, the young scientist",
        """sign/signed: the contract, a secret letter, the official form
           send/sent: a secret letter, the daily report, an urgent message, the small package
           answer/answered: the telephone, an urgent message, a simple question
           open/opened: the front door, the small package, the locked drawer, a new account
           plan/planned: the annual meeting, a surprise party, the city park
           print/printed: the daily report, the front page, a color poster""",
        "at the office, in the meeting, downtown, near the elevator, across the hall",
    ),
    "home": (
        "the children, my brother, the sleepy cat, the loyal dog, the twins, my cousin",
        """clean/cleaned: the living room, the dusty shelf, the muddy floor
           close/closed: the window, the heavy curtain, the wooden gate
           wear/wore: a warm sweater, the yellow raincoat, a funny hat
           move/moved: the green sofa, the round mirror, a tiny lamp
           share/shared: a secret, the last cookie, a warm blanket, the old bicycle
           want/wanted: a kitten, the old bicycle, some ice cream, a quiet evening""",
        "at home, in the bedroom, on the balcony, upstairs, by the fireplace, on the roof",
    ),
}

TIMES = """yesterday|this morning|last night|on Monday|on Friday|after lunch|before sunrise|in the evening|every summer
once again|a week ago|at noon|early in spring|late in autumn|on Sunday afternoon|all day long""".replace(
    "\n", "|"
).split("|")
MANNERS = "slowly quickly carefully quietly proudly happily gently suddenly bravely easily badly together".split()
WEATHER = """the wind was blowing|it was raining|the sky turned dark|the snow began to melt|the sun was shining
the storm was over|the fog was thick|it became very cold|the clouds disappeared
the moon was full""".replace("\n", "|").split("|")
FEELINGS = "angry happy tired afraid curious proud hungry thirsty bored calm lonely surprised nervous grateful".split()
SAYING = "said thought believed knew hoped agreed whispered remembered noticed insisted".split()


def parse(topic: str) -> tuple[list[str], list[tuple[str, str, list[str]]], list[str]]:
    """People, verbs `(base form, past, objects)` and places of a topic."""
    people, verbs, places = TOPICS[topic]
    phrases = []
    for line in verbs.splitlines():
        verb, things = line.split(":")
        base, past = verb.strip().split("/")
        phrases.append((base, past, [thing.strip() for thing in things.split(",")]))
    return [p.strip() for p in people.split(",")], phrases, [p.strip() for p in places.split(",")]


GRAMMAR = {topic: parse(topic) for topic in TOPICS}


class Teller:
    """Draws sentences about one topic and remembers the last person.

    Args:
        random_: source of all choices.
        topic: a key of `TOPICS`; drawn by default.
    """

    def __init__(self, random_: random.Random, topic: str | None = None):
        self.random = random_
        self.people, self.verbs, self.places = GRAMMAR[topic or random_.choice(sorted(GRAMMAR))]
        self.hero, self.pronoun = "", ""

    def someone(self) -> str:
        """A new person."""
        if self.random.random() < 0.45:
            self.pronoun = self.random.choice(("he", "she"))
            self.hero = self.random.choice(NAMES[self.pronoun])
        else:
            self.hero, self.pronoun = self.random.choice(self.people), ""
        return self.hero

    def again(self) -> str:
        """The last person, by pronoun if there is one."""
        return self.pronoun or self.hero

    def act(self, tense: int = 1) -> tuple[str, str]:
        """A verb phrase and its object, in the base form (tense 0) or the past (tense 1)."""
        verb = self.random.choice(self.verbs)
        thing = self.random.choice(verb[2])
        return f"{verb[tense]} {thing}", thing

    def sentence(self) -> str:
        """A sentence of one of twelve forms."""
        choose = self.random.choice
        form = self.random.randrange(12)
        who = self.again() if self.hero and self.random.random() < 0.5 else self.someone()
        did, thing = self.act()
        place, time = choose(self.places), choose(TIMES)
        if form == 0:
            text = f"{who} {did} {place}"
        elif form == 1:
            text = f"{time}, {who} {did} {place}"
        elif form == 2:
            text = f"{who} {choose(MANNERS)} {did} and then {self.act()[0]} {place}"
        elif form == 3:
            text = f"{who} was {choose(FEELINGS)} because {self.someone()} {did} {time}"
        elif form == 4:
            text = f"why did {who} {self.act(0)[0]} {place}?"
        elif form == 5:
            text = f"when {choose(WEATHER)}, {who} {choose(MANNERS)} {did}"
        elif form == 6:
            text = f"{who} {choose(SAYING)} that {self.someone()} {did} {place} {time}"
        elif form == 7:
            text = f"{thing} was {place}, but {who} did not {self.act(0)[0]} there"
        elif form == 8:
            text = f"{time}, {choose(WEATHER)}, so {who} {did} {place} and {self.act()[0]}"
        elif form == 9:
            text = f"{who} {choose(('tried', 'wanted', 'started', 'promised', 'refused'))} to {self.act(0)[0]} {place}"
        elif form == 10:
            text = f"did {who} {self.act(0)[0]}, or did {self.someone()} {self.act(0)[0]} {time}?"
        else:
            text = f"if {who} and {self.someone()} {did} {place}, nobody will {self.act(0)[0]}"
        text = text[0].upper() + text[1:]
        return text if text.endswith("?") else text + "."


def sentences(count: int, seed: int, shortest: int = 5, longest: int = 18) -> list[str]:
    """Draw `count` distinct sentences of `shortest` to `longest` words, topics in turn."""
    random_, found = random.Random(seed), {}
    topics = sorted(GRAMMAR)
    while len(found) < count:
        text = Teller(random_, topics[len(found) % len(topics)]).sentence()
        if shortest <= len(text.split()) <= longest:
            found.setdefault(text, None)
    return list(found)


def stories(count: int, seed: int, forbidden: set[str]) -> list[str]:
    """Draw `count` documents of three to seven sentences on one topic, without the `forbidden` sentences."""
    random_, found = random.Random(seed), []
    for _ in range(count):
        teller, lines = Teller(random_), []
        length = random_.randint(3, 7)
        while len(lines) < length:
            line = teller.sentence()
            if line not in forbidden:
                lines.append(line)
        found.append(" ".join(lines))
    return found


HAND_WRITTEN = """
A small bird sat on the fence and looked at the rain for a very long time.
Nobody in the village could remember when the old bridge had been built or who had paid for it.
Please close the door behind you, because the cat likes to run away.
The blue whale is the largest animal that has ever lived on this planet.
My brother keeps a jar of buttons, a broken watch and three letters under his bed.
We walked along the river until the lights of the town were far behind us.
Would you rather have a cup of tea or a glass of cold water with lemon?
The painter mixed yellow and blue to make the green that she needed for the trees.
Every morning the same old man feeds the pigeons in front of the church.
It takes more courage to ask a question than to pretend that you already know.
The museum closes at five, so we should leave now if we want to see the paintings.
His voice was so quiet that only the people in the first row could hear him.
A good map, a warm coat and a sharp knife are all that you need in these hills.
They planted a row of apple trees on the day when their daughter was born.
The radio said that the roads in the north would stay closed until the weekend.
She opened the letter slowly, read it twice and put it back into the drawer.
Do you know why the leaves turn red and gold before they fall in autumn?
The engine coughed, shook the whole car and then went silent in the middle of the road.
On clear nights we carry our chairs outside and count the stars over the barn.
The tailor said that the coat would be ready on Thursday, but he forgot the buttons.
An hour later the snow had covered the tracks, and nobody knew which way to go.
You can borrow my bicycle if you promise to bring it back before dinner.
The smell of fresh bread from the bakery wakes the whole street at six.
Some people collect stamps, others collect stones, and my aunt collects old keys.
""".strip().splitlines()
