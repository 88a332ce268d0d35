"""The words of the market: departments, types and their synonyms, brands, attributes, modifiers.

A type is written ``name|synonym``. A brand with a star shares its name with a type of another department. A
modifier is written ``words@tag``; the tag names the audience or the price tier that the words speak to.
Brands are everyday words or made up; a likeness to a company means nothing.
"""

from __future__ import annotations

from typing import NamedTuple

#: Who the shopper buys for; a modifier may name one of them.
AUDIENCES = ("women", "men", "kids", "seniors")
#: How much the shopper likes to spend; a modifier may name one of them, and every brand belongs to one.
PRICE_TIERS = ("budget", "middle", "premium")


class Shelf(NamedTuple):
    """Types that take the same attributes."""

    types: str
    attributes: str


class Department(NamedTuple):
    """One department's words and its typical price."""

    name: str
    brands: str
    launch: str  # a brand that starts on the first test day
    modifiers: str
    price: float
    shelves: tuple[Shelf, ...]


LEXICON: tuple[Department, ...] = (
    Department(
        "phones",
        "apple*, blackberry*, novatel, zentra, lumio, orbix, kestrel, pixon",
        "veloxa",
        "for kids@kids, for seniors@seniors, cheap@budget, on sale@budget, top rated@premium, for travel, with box",
        180.0,
        (
            Shelf(
                "smartphone|mobile phone, tablet|tab, smartwatch|smart band, earbuds|in ear headphones, "
                "headphones|headset, ebook reader|e reader, walkie talkie|two way radio",
                "black, silver, blue, refurbished, waterproof, slim, large screen",
            ),
            Shelf(
                "phone case|phone cover, charger|wall plug, screen protector|glass film, power "
                "bank|battery pack, charging cable|usb lead, phone holder|phone mount",
                "black, clear, magnetic, heavy duty, wireless, foldable, fast",
            ),
        ),
    ),
    Department(
        "computers",
        "orange*, piano*, dataro, hexacore, tribyte, nimbus, corelink, vantix",
        "quanta one",
        "for men@men, for kids@kids, cheap@budget, second hand@budget, high end@premium, for gaming, for office",
        240.0,
        (
            Shelf(
                "laptop|notebook computer, monitor|screen, desktop computer|tower pc, printer|ink printer, "
                "webcam|pc camera, router|wifi box, projector|beamer",
                "compact, black, white, refurbished, wireless, quiet, 4k",
            ),
            Shelf(
                "keyboard|typing keyboard, mouse|computer mouse, mouse pad|desk mat, laptop bag|laptop "
                "sleeve, memory card|sd card, hard drive|storage drive",
                "ergonomic, mechanical, mini, grey, rgb, portable, silent",
            ),
        ),
    ),
    Department(
        "fashion",
        "mango*, compass*, marlowe, velvetine, bellamy, solstice, odette, harrow",
        "linnea rose",
        "for women@women, for men@men, for girls@kids, cheap@budget, designer@premium, plus size, for work",
        45.0,
        (
            Shelf(
                "dress|gown, skirt, blouse|shirt top, jeans|denim pants, jumper|sweater, cardigan|knit "
                "jacket, coat|overcoat",
                "black, red, floral, cotton, linen, striped, oversized",
            ),
            Shelf(
                "handbag|purse, scarf|neck wrap, belt|waist belt, sunglasses|shades, gloves|mittens, hat|cap",
                "brown, leather, vintage, small, wool, beige, soft",
            ),
        ),
    ),
    Department(
        "shoes",
        "kiwi*, saddle*, stridewell, norvik, aerolite, panthera, cobble, trailhawk",
        "swiftfoot",
        "for women@women, for men@men, for boys@kids, for seniors@seniors, discount@budget, luxury@premium, wide fit",
        70.0,
        (
            Shelf(
                "running shoes|trainers, walking shoes|comfort shoes, hiking boots|trekking boots, "
                "football boots|soccer cleats, basketball shoes|high tops, sneakers|gym shoes, tennis "
                "shoes|court shoes",
                "white, black, red, waterproof, lightweight, breathable, cushioned",
            ),
            Shelf(
                "sandals|summer shoes, slippers|house shoes, loafers|slip ons, ankle boots|short boots, "
                "high heels|stilettos, rain boots|wellies",
                "brown, suede, leather, fluffy, open toe, navy, flat",
            ),
        ),
    ),
    Department(
        "beauty",
        "peach*, ribbon*, glowery, dermia, rosalind, purely, auralis, botanique",
        "skinwell lab",
        "for women@women, for men@men, for mature skin@seniors, travel size@budget, gift set@premium, for "
        "dry skin, with spf",
        22.0,
        (
            Shelf(
                "lipstick|lip colour, mascara|lash colour, foundation|face make up, nail polish|nail "
                "varnish, eyeliner|eye pencil, blush|rouge, eyeshadow|eye palette",
                "red, nude, matte, waterproof, vegan, long lasting, pink",
            ),
            Shelf(
                "face cream|moisturiser, shampoo|hair wash, body lotion|skin lotion, perfume|fragrance, "
                "sunscreen|sun cream, hair mask|hair treatment",
                "gentle, unscented, organic, hydrating, coconut, anti aging, sensitive",
            ),
        ),
    ),
    Department(
        "kitchen",
        "pear*, whistle*, cuisora, hearthly, ironpot, brightware, fornello, mistral",
        "panora",
        "for kids@kids, for seniors@seniors, cheap@budget, professional@premium, set of 4, for camping, with lid",
        48.0,
        (
            Shelf(
                "frying pan|skillet, saucepan|cooking pot, baking tray|oven tray, chopping board|cutting "
                "board, mixing bowl|salad bowl, water bottle|drinks bottle, lunch box|food container",
                "non stick, stainless steel, large, small, ceramic, green, stackable",
            ),
            Shelf(
                "kettle|water boiler, toaster|bread toaster, blender|smoothie maker, coffee "
                "machine|espresso maker, air fryer|hot air oven, rice cooker|rice steamer, microwave",
                "electric, compact, red, black, retro, digital, quiet",
            ),
        ),
    ),
    Department(
        "home",
        "lantern*, feather*, nordhem, casaluna, oakline, plushy, hollis, serein",
        "havenly",
        "for kids room@kids, for seniors@seniors, clearance@budget, luxury@premium, for living room, for "
        "bedroom, set of 2",
        85.0,
        (
            Shelf(
                "sofa|couch, armchair|easy chair, coffee table|side table, bookshelf|bookcase, bed "
                "frame|bedstead, wardrobe|closet, desk|writing table",
                "grey, wooden, white, small, modern, rustic, foldable",
            ),
            Shelf(
                "pillow|cushion, blanket|throw, curtains|drapes, rug|carpet, duvet cover|bed linen, "
                "table lamp|bedside light",
                "blue, soft, cotton, striped, warm, boho, washable",
            ),
        ),
    ),
    Department(
        "toys",
        "lemon*, drum*, brickland, tinkertop, playmore, zoomi, wonderbox, dinoco",
        "robokin",
        "for girls, for boys, for toddlers@kids, for grandparents@seniors, cheap@budget, collector@premium, "
        "for christmas",
        28.0,
        (
            Shelf(
                "building blocks|bricks, toy car|race car, train set|toy railway, dollhouse|doll house, "
                "toy kitchen|play kitchen, robot|toy robot, kite|flying kite",
                "wooden, magnetic, mini, giant, remote control, pink, glow in the dark",
            ),
            Shelf(
                "teddy|teddy bear, doll|baby doll, puzzle|jigsaw, board game|family game, card "
                "game|playing cards, hand puppet|glove puppet",
                "soft, classic, educational, funny, travel, musical, 100 piece",
            ),
        ),
    ),
    Department(
        "baby",
        "honey*, pumpkin*, snugly, littlenest, mimosa, cuddlecot, bambini, hushby",
        "dreamling",
        "for girls, for boys, for twins@kids, value pack@budget, premium@premium, newborn, for travel",
        36.0,
        (
            Shelf(
                "stroller|pushchair, car seat|child seat, baby carrier|baby sling, cot|crib, high "
                "chair|feeding chair, baby monitor|baby phone, changing table|nappy table",
                "lightweight, foldable, grey, compact, wooden, white, adjustable",
            ),
            Shelf(
                "nappies|diapers, baby bottle|feeding bottle, pacifier|dummy, bib|baby apron, "
                "sleepsuit|romper, baby wipes|wet wipes",
                "organic, bamboo, sensitive, yellow, silicone, reusable, printed",
            ),
        ),
    ),
    Department(
        "pets",
        "biscuit*, pillow*, pawly, whiskerton, furrever, barkley, petalo, tailwag",
        "meowlo",
        "for puppies@kids, for senior dogs@seniors, bulk@budget, luxury@premium, for large dogs, for "
        "small cats, indoor",
        24.0,
        (
            Shelf(
                "dog food|kibble, cat food|kitty food, dog treats|dog snacks, cat litter|litter sand, "
                "bird seed|bird feed, fish food|fish flakes",
                "grain free, organic, chicken, salmon, dry, wet, hypoallergenic",
            ),
            Shelf(
                "dog bed|dog basket, cat tree|scratching post, dog leash|dog lead, dog collar, pet "
                "carrier|cat box, aquarium|fish tank, dog toy|chew toy",
                "large, small, soft, black, washable, strong, reflective",
            ),
        ),
    ),
    Department(
        "garden",
        "olive*, canvas*, greenhollow, terrano, blossomly, rakewell, sunpatch, mossy",
        "verdanta",
        "for kids@kids, for seniors@seniors, cheap@budget, professional@premium, for balcony, for patio, with cover",
        58.0,
        (
            Shelf(
                "lawn mower|grass cutter, hedge trimmer|hedge cutter, garden hose|water hose, watering "
                "can|sprinkler can, spade|shovel, wheelbarrow|garden cart, pruning shears|secateurs",
                "electric, cordless, lightweight, green, long, metal, small",
            ),
            Shelf(
                "garden chair|lawn chair, garden table|outdoor table, parasol|sun umbrella, "
                "hammock|garden swing, plant pot|flower pot, bird house|nesting box, barbecue|bbq grill",
                "wooden, folding, large, black, weatherproof, rattan, hanging",
            ),
        ),
    ),
    Department(
        "sports",
        "kite*, hammock*, summitgear, velora, ridgeback, bluewave, apexo, ironcrest",
        "peakform",
        "for women@women, for men@men, for kids@kids, for seniors@seniors, cheap@budget, pro@premium, for beginners",
        64.0,
        (
            Shelf(
                "tent|camping shelter, sleeping bag|camp bed bag, backpack|rucksack, lantern|camping light, "
                "compass|pocket compass, bike helmet|cycle helmet, saddle|bike seat",
                "waterproof, ultralight, 2 person, red, compact, comfortable, green",
            ),
            Shelf(
                "yoga mat|exercise mat, dumbbells|hand weights, football|soccer ball, tennis "
                "racket|tennis bat, swimming goggles|swim goggles, skipping rope|jump rope, "
                "whistle|referee whistle",
                "black, blue, soft, heavy, junior, professional, foam",
            ),
        ),
    ),
    Department(
        "grocery",
        "kettle*, teddy*, farmgate, goldleaf, nonna rosa, millstone, sunnydale, bonheur",
        "oatisfy",
        "for kids@kids, for diabetics@seniors, value pack@budget, fine@premium, 1kg, in bulk, for baking",
        8.0,
        (
            Shelf(
                "apple|eating apple, mango|mango fruit, kiwi|kiwi fruit, peach|nectarine, pear|conference "
                "pear, orange|juicing orange, lemon|citrus lemon, blackberry|bramble, pumpkin|squash, "
                "olive|table olives",
                "organic, fresh, dried, frozen, sliced, green, sweet",
            ),
            Shelf(
                "biscuit|cookie, honey|bee honey, coffee beans|espresso beans, green tea|tea leaves, "
                "pasta|noodles, olive oil|cooking oil, chocolate|cocoa bar, crisps|potato chips",
                "organic, gluten free, dark, salted, unsweetened, italian, crunchy",
            ),
        ),
    ),
    Department(
        "crafts",
        "puzzle*, spade*, artisano, colorello, stitchery, maestro, inkwell, palettia",
        "crealoom",
        "for kids@kids, for seniors@seniors, cheap@budget, professional@premium, for beginners, as a gift, for school",
        32.0,
        (
            Shelf(
                "canvas|painting board, acrylic paint|art paint, paint brush|artist brush, "
                "sketchbook|drawing pad, easel|painting stand, coloured pencils|pencil crayons, "
                "feather|craft plume",
                "large, small, white, round, professional, bright, assorted",
            ),
            Shelf(
                "sewing machine|stitching machine, knitting yarn|wool, ribbon|gift band, drum|hand drum, "
                "guitar|acoustic guitar, piano|keyboard piano, glue gun|hot glue",
                "pink, black, portable, classic, mini, beginner, wooden",
            ),
        ),
    ),
)


def words(text: str) -> list[str]:
    """Split a comma list of the lexicon into its entries."""
    return [part.strip() for part in text.split(",") if part.strip()]
