"""The ways to say things in French, from which `headrace.world.french` builds captions."""

from __future__ import annotations

MANY = {"un": "", "le": "les ", "de": "de ", "du": "des "}
"""What the articles become before a number."""

NUMBERS = {2: "deux", 3: "trois", 4: "quatre"}

COLORS: dict[str, tuple[str, str]] = {
    "red": ("rouge", "rouge"),
    "orange": ("orange", "orange"),
    "yellow": ("jaune", "jaune"),
    "green": ("vert", "verte"),
    "turquoise": ("turquoise", "turquoise"),
    "blue": ("bleu", "bleue"),
    "purple": ("violet", "violette"),
    "pink": ("rose", "rose"),
    "brown": ("marron", "marron"),
    "black": ("noir", "noire"),
    "grey": ("gris", "grise"),
    "white": ("blanc", "blanche"),
}
"""The colours' adjectives, masculine and feminine."""

INVARIABLE = {"orange", "turquoise", "marron"}
"""Colours that are called after things take no plural (Académie française); "rose" has become an adjective and does."""

SIZES: dict[str, tuple[tuple[str, str], ...]] = {
    "large": (("grand", "grande"), ("gros", "grosse"), ("grand", "grande")),
    "small": (("petit", "petite"), ("petit", "petite"), ("tout petit", "toute petite")),
}

MEDIUM = "de taille moyenne"

RELATIONS = {
    "left of": ("à gauche de", "sur la gauche de"),
    "right of": ("à droite de", "sur la droite de"),
    "above": ("au-dessus de", "au dessus de"),
    "below": ("en dessous de", "au-dessous de", "sous"),
}

BESIDE_IT = {
    "left of": ("à sa gauche", "à gauche", "sur la gauche"),
    "right of": ("à sa droite", "à droite", "sur la droite"),
    "above": ("au-dessus", "par-dessus"),
    "below": ("en dessous", "au-dessous"),
}
"""For "un chien avec un chat à sa gauche"."""

FACES = {
    "sans": ("sans empattement", "arrondies"),
    "serif": ("à empattements", "avec empattements"),
    "typewriter": ("de machine à écrire", "à chasse fixe"),
}

GRADIENTS = {
    "across": "{first} à gauche et {second} à droite",
    "down": "{first} en haut et {second} en bas",
    "diagonal": "{first} en haut à gauche et {second} en bas à droite",
}

STRIPES = {"across": "verticales", "down": "horizontales", "diagonal": "diagonales"}

CORNER_PLACES = {
    "top left": "en haut à gauche",
    "top right": "en haut à droite",
    "bottom left": "en bas à gauche",
    "bottom right": "en bas à droite",
}

FRAMES = (
    "{things} sur {background}",
    "{things} devant {background}",
    "{things}, {background}",
    "{background} avec {things}",
    "sur {background}, {things}",
    "{background}, et dessus {things}",
    "{things}. Le fond est {behind}",
    "une image avec {background} qui montre {things}",
)

WITH = "avec"

WITH_TEXT = ("{0} avec {1}", "{0} et {1}", "{1}, {0}", "{1} et {0}", "{0}", "{0}")
"""Things with words; where the words are not among them, they come at the end of the caption."""

OPENERS = ("", "", "", "", "une image : ", "voici ", "dessine ", "montre-moi ", "fais-moi ", "je voudrais ")

SIDE_FRAMES = (
    "{first} {related}",
    "{first} {related}",
    "{first}, {related}",
    "{first} {placed} {related}",
    "{second} avec {first} {beside}",
    "{second} et, {beside}, {first}",
)

BETWEEN = ("{0} entre {1} et {2}", "{1} et {2} avec {0} entre les deux", "{0} {placed} entre {1} et {2}")

CORNER_FRAMES = ("{other} avec {subject} {place}", "{subject} {place} et {other}", "{other} et, {place}, {subject}")

LIGHT_FRAMES = (
    ", le tout éclairé {side}",
    ", avec une lumière qui vient {source}",
    ", lumière venant {source}",
    ". La lumière vient {source}",
)

SOURCES = {"above": "d'en haut", "below": "d'en bas", "left": "de la gauche", "right": "de la droite"}

LIT_SIDES = {"above": "par le haut", "below": "par le bas", "left": "par la gauche", "right": "par la droite"}

POSES: dict[str, tuple[str, ...]] = {
    "standing": ("debout", "qui se tient debout", "qui se tient droit"),
    "waving": ("qui fait signe", "qui salue de la main", "qui fait coucou"),
    "arms up": ("les bras en l'air", "les deux bras levés", "qui lève les bras"),
    "arms out": ("les bras écartés", "les bras tendus sur les côtés", "qui écarte les bras"),
    "hands on hips": ("les mains sur les hanches", "avec les mains sur les hanches"),
    "running": ("qui court", "en train de courir"),
    "jumping": ("qui saute", "en train de sauter", "qui saute de joie"),
    "dancing": ("qui danse", "en train de danser"),
}

CHARACTERS = {
    "human": "humain",
    "robot": "robot",
    "bear": "ours",
    "rabbit": "lapin",
    "astronaut": "astronaute",
    "alien": "extraterrestre",
}

TWO_SIDES = ("{0}, et {1} {2}", "{0}, avec {1} {2}", "{0} ; {2}, {1}", "{0} et {1} {2}")

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

PUT = ("mets ", "mets ", "place ", "montre ", "assemble les images : ", "")

CHANGE_BACKGROUND = (
    "mets {phrase}",
    "remplace le fond par {phrase}",
    "change le fond : {phrase}",
    "le fond doit être {predicate}",
    "fais en sorte que le fond soit {predicate}",
    "je voudrais {phrase}",
)

REMOVE = (
    "enlève {}",
    "supprime {}",
    "retire {}",
    "efface {}",
    "fais disparaître {}",
    "ôte {}",
    "la même image sans {}",
)

REPLACE = (
    "remplace {old} par {new}",
    "mets {new} à la place {of_old}",
    "échange {old} contre {new}",
    "change {old} en {new}",
    "au lieu {of_old}, montre {new}",
)

RECOLOR = (
    "peins {old} en {color}",
    "colorie {old} en {color}",
    "mets {old} en {color}",
    "change la couleur {of_old} en {color}",
)

ADD = (
    "ajoute {new} {place}",
    "mets {new} {place}",
    "place {new} {place}",
    "dessine {new} {place}",
    "{place}, ajoute {new}",
)

ASKED = ("", "", "s'il te plaît, ", "maintenant, ", "et maintenant ")
"""Before an edit that begins with a verb."""

NOT_VERBS = ("la ", "le ", "au ", "je ", "{place}")

KEEPING = (
    "",
    "",
    ", et garde tout le reste",
    ", laisse le reste comme il est",
    " sans rien changer d'autre",
)
"""After an edit."""

THE_TEXT = "le texte"

ADD_TEXT = ("ajoute {}", "écris {}", "mets dessus {}", "ajoute {} à l'image", "la même image avec {}")

POSED_LIKE = (
    "dans la pose de l'image {}",
    "dans la même pose que l'image {}",
    "avec la pose de l'image {}",
    "dans la pose du squelette de l'image {}",
    "qui prend la pose de l'image {}",
    "dans la position du squelette de l'image {}",
)

ASPIRATED = {"hamburger"}
"""Nouns whose h forbids elision: "le hamburger"."""

IRREGULAR_PLURALS = {
    "bonhomme de neige": "bonshommes de neige",
    "chauve-souris": "chauves-souris",
    "arc-en-ciel": "arcs-en-ciel",
    "cerf-volant": "cerfs-volants",
}
