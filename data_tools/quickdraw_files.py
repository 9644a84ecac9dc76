"""Which files Quick, Draw! consists of, and where Google keeps them.

Some 50 million drawings under CC BY 4.0 (github.com/googlecreativelab/quickdraw-dataset), one file
per category and kind, named after the category. Google publishes no table of checksums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastvae.errors import UserError, nearest

BUCKET = "https://storage.googleapis.com/quickdraw_dataset/"


class Kind(NamedTuple):
    """One form in which the drawings are published."""

    folder: str
    """In the bucket."""
    suffix: str
    meaning: str
    subfolder: str
    """Below --root, so that no two kinds of the same drawings share a folder."""


KINDS = {
    "simplified": Kind(
        "full/simplified/", ".ndjson", "strokes of points 0 to 255, all about 23 GB", ""
    ),
    "raw": Kind("full/raw/", ".ndjson", "as drawn, with times, all about 190 GB", "raw"),
    "binary": Kind("full/binary/", ".bin", "simplified, compact, all about 5 GB", "binary"),
    "bitmap": Kind(
        "full/numpy_bitmap/", ".npy", "images of 28x28 pixels, all about 37 GB", "bitmap"
    ),
}
SKETCHRNN = Kind("sketchrnn/", ".npz", "75,000 drawings a category, in three splits", "")

_NAMES = """
aircraft carrier, airplane, alarm clock, ambulance, angel, animal migration, ant, anvil, apple, arm,
asparagus, axe, backpack, banana, bandage, barn, baseball, baseball bat, basket, basketball, bat,
bathtub, beach, bear, beard, bed, bee, belt, bench, bicycle, binoculars, bird, birthday cake,
blackberry, blueberry, book, boomerang, bottlecap, bowtie, bracelet, brain, bread, bridge, broccoli,
broom, bucket, bulldozer, bus, bush, butterfly, cactus, cake, calculator, calendar, camel, camera,
camouflage, campfire, candle, cannon, canoe, car, carrot, castle, cat, ceiling fan, cell phone,
cello, chair, chandelier, church, circle, clarinet, clock, cloud, coffee cup, compass, computer,
cookie, cooler, couch, cow, crab, crayon, crocodile, crown, cruise ship, cup, diamond, dishwasher,
diving board, dog, dolphin, donut, door, dragon, dresser, drill, drums, duck, dumbbell, ear, elbow,
elephant, envelope, eraser, eye, eyeglasses, face, fan, feather, fence, finger, fire hydrant,
fireplace, firetruck, fish, flamingo, flashlight, flip flops, floor lamp, flower, flying saucer,
foot, fork, frog, frying pan, garden, garden hose, giraffe, goatee, golf club, grapes, grass,
guitar, hamburger, hammer, hand, harp, hat, headphones, hedgehog, helicopter, helmet, hexagon,
hockey puck, hockey stick, horse, hospital, hot air balloon, hot dog, hot tub, hourglass, house,
house plant, hurricane, ice cream, jacket, jail, kangaroo, key, keyboard, knee, knife, ladder,
lantern, laptop, leaf, leg, light bulb, lighter, lighthouse, lightning, line, lion, lipstick,
lobster, lollipop, mailbox, map, marker, matches, megaphone, mermaid, microphone, microwave, monkey,
moon, mosquito, motorbike, mountain, mouse, moustache, mouth, mug, mushroom, nail, necklace, nose,
ocean, octagon, octopus, onion, oven, owl, paint can, paintbrush, palm tree, panda, pants,
paper clip, parachute, parrot, passport, peanut, pear, peas, pencil, penguin, piano, pickup truck,
picture frame, pig, pillow, pineapple, pizza, pliers, police car, pond, pool, popsicle, postcard,
potato, power outlet, purse, rabbit, raccoon, radio, rain, rainbow, rake, remote control,
rhinoceros, rifle, river, roller coaster, rollerskates, sailboat, sandwich, saw, saxophone,
school bus, scissors, scorpion, screwdriver, sea turtle, see saw, shark, sheep, shoe, shorts,
shovel, sink, skateboard, skull, skyscraper, sleeping bag, smiley face, snail, snake, snorkel,
snowflake, snowman, soccer ball, sock, speedboat, spider, spoon, spreadsheet, square, squiggle,
squirrel, stairs, star, steak, stereo, stethoscope, stitches, stop sign, stove, strawberry,
streetlight, string bean, submarine, suitcase, sun, swan, sweater, swing set, sword, syringe,
t-shirt, table, teapot, teddy-bear, telephone, television, tennis racquet, tent, The Eiffel Tower,
The Great Wall of China, The Mona Lisa, tiger, toaster, toe, toilet, tooth, toothbrush, toothpaste,
tornado, tractor, traffic light, train, tree, triangle, trombone, truck, trumpet, umbrella,
underwear, van, vase, violin, washing machine, watermelon, waterslide, whale, wheel, windmill,
wine bottle, wine glass, wristwatch, yoga, zebra, zigzag
"""
CATEGORIES = tuple(_NAMES.replace("\n", " ").strip().split(", "))


def check_categories(names: Sequence[str]) -> list[str]:
    """The names without repetitions; UserError for one that Quick, Draw! does not have."""
    for name in names:
        if name not in CATEGORIES:
            raise UserError(
                f"Quick, Draw! has no category {name!r}{nearest(name, CATEGORIES)}; "
                "--list shows all of them"
            )
    return list(dict.fromkeys(names))
