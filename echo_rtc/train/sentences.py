"""Texts to be spoken for the training corpus: sentences of our own in many languages, and pseudo-words.

English comes from templates over word lists, so that hardly a sentence repeats; the other languages are lists that
cover their sounds. Knows nothing of voices, audio or phonemes; a random generator is an argument.
"""

# ruff: noqa: RUF001 (letters of other alphabets are meant here)

from __future__ import annotations

import numpy as np


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split("|"))


_PEOPLE = _split(
    "my brother|the young doctor|your neighbour|Mister Thompson|a fisherman|the queen|Barbara|old Philip|our teacher"
    "|the boy|her grandmother|the pilot|a brave woman|George|the baker|Miss Vivian|my boss|a shy child|Matthew"
    "|the postman|that actor|some people|everybody|Beth and Joe|nobody|the whole family|our guide|a nurse|the mayor"
    "|Oliver|Charlotte|the plumber|Doctor Webb|a stranger|the author|Sophie|my cousin Jim|the chef|uncle Robert"
)
_THINGS = _split(
    "a wooden box|the heavy book|five pears|some fresh bread|the broken chair|a map of Europe|the blue umbrella"
    "|two cups of coffee|a bowl of soup|the yellow bus|an old photograph|the violin|a pair of gloves|the tall tower"
    "|a purple flower|the toothbrush|a bottle of milk|the garage key|a thick jumper|the mushroom pie|three big fish"
    "|the newspaper|a piece of cheese|the piano|a warm blanket|the wheel|a measuring tape|the orange boat|a good joke"
    "|the wrong number|a long letter|the bright lamp|eight apples|a rubber ball|the camera|some vegetables|a treasure"
    "|the sharp knife|a puzzle|the purse|a cheap watch|the garden hose|my laptop|a leather jacket|the microphone"
)
_PLACES = _split(
    "in the park|at the beach|under the bridge|behind the house|near the harbour|on the roof|in the village"
    "|at the theatre|by the river|in the kitchen|outside the church|on the mountain|at work|in the forest|on the bus"
    "|beside the fountain|across the road|in a small shop|at the airport|above the clouds|in the library|on the farm"
    "|in the middle of nowhere|at the top of the stairs|over there|inside the museum|at the railway station"
)
_TIMES = _split(
    "yesterday|every morning|before breakfast|last Thursday|in March|after the show|at five o'clock|once a week"
    "|on Wednesday|for about an hour|all summer|during the meeting|tomorrow evening|this afternoon|since February"
    "|in the past few months|almost every day|around midnight|when it rained|just now|twice this year|before long"
)
_PAST = _split(
    "bought|found|wanted|forgot|carried|painted|dropped|measured|showed me|asked for|pushed|threw away|noticed"
    "|borrowed|wrapped|put down|looked at|brought back|picked up|repaired|moved|saved|washed|described|weighed|hid"
    "|photographed|swapped|rubbed|followed|gave us|sold|opened|closed|broke|chose|admired|covered|imagined"
)
_ADJECTIVES = _split(
    "happy|huge|smooth|rough|beautiful|awful|strange|simple|cheap|quiet|loud|famous|empty|warm|very good|rather odd"
    "|wonderful|worth a visit|possible|obvious|above average|pure magic|a bit boring|perfectly fine|full of people"
    "|impossible to find|younger than me|thick and heavy|soft and pale|usual|too small|brand new|rather clever"
)
_VERBS = _split(
    "move|help|wait|stop|jump|sing|think|laugh|breathe|begin|leave|swim|choose|fly|improve|whisper|shout|measure it"
    "|push the button|play the flute|bake a cake|go home|stay up|wash the cups|watch the birds|fix the pump|vote"
    "|climb over|build a shed|come back|pay the bill|put it away|turn left|wave goodbye|switch it off|speak slowly"
)
_TEMPLATES = (
    "{P} {d} {o} {l}.",
    "{P} {d} {o} {t}.",
    "{T}, {p} {d} {o} {l}.",
    "I think {p} {d} {o}, but I may be wrong.",
    "Did you know that {p} {d} {o} {t}?",
    "Why would {p} {v} {l}?",
    "{O} {l} is {a}.",
    "Please {v} before {p} {d} {o}.",
    "Well, {o} was {a}, and {p} knew it.",
    "How far is it from here, and who will {v}?",
    "We could {v}, or we could {w} {t}.",
    "{P} would never {v} {l}, I promise.",
    "If you want to {v}, you should {w} first.",
    "Oh, that is {a}! Let us {v}.",
    "There were {n} of them {l} {t}.",
    "My number is {n}, {m}, {n}, {m}.",
    "{P} said: {o} is {a}.",
    "Maybe {p} will {v} {t}, maybe not.",
    "Yes. No. I mean, {o} looks {a} to me.",
    "Thank you for {o}; it is {a}.",
    "Could you show me where {p} {d} {o}?",
    "Bob, Pam and Mabel {d} {o} {l}.",
    "So, what should we {v} for, and when do we {w}?",
    "Hello! My name is {p}, and I am {a}.",
    "Wow, you {d} {o} {t}?",
    "Five fine vets {d} {o} while {p} had to {v}.",
    "She sees the sea, then she will {v} with the other three.",
    "All right, I will {v} now.",
    "It costs {n} pounds and {m} pence.",
    "Mm, {o}. Ah, {l}. Ooh, how {a}.",
)
_NUMBERS = _split(
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fifteen|sixteen|eighteen|twenty"
    "|thirty one|forty two|fifty|sixty six|seventy eight|ninety nine|a hundred|a thousand|four million"
)
_ONSETS = _split("p|b|m|f|v|w|t|d|n|s|z|sh|ch|j|k|g|h|l|r|y|th|pl|br|sm|fl|tw|kr|st|sw|bl|fr")
_NUCLEI = _split("a|e|i|o|u|ee|oo|ay|ow|oy|ah|aw|er|ie")
_CODAS = _split("|||p|b|m|f|v|t|n|s|z|sh|k|l|ng|mp|lf|ps|bz")

_OTHERS: dict[str, tuple[str, ...]] = {
    "de": (
        "Guten Morgen, wie geht es Ihnen heute?",
        "Der Bäcker verkauft jeden Tag frisches Brot.",
        "Möchten Sie lieber Äpfel oder Pflaumen?",
        "Ich habe gestern fünf schöne Bücher gefunden.",
        "Wir fahren über die Brücke und dann nach Hause.",
        "Die Kinder spielen fröhlich im großen Garten.",
        "Meine Mutter wohnt in einem kleinen Dorf am Meer.",
        "Heute Abend gibt es Pfannkuchen mit Marmelade.",
        "Wo bitte ist der Bahnhof, und wann kommt der Zug?",
        "Es ist wunderbar warm, obwohl die Sonne nicht scheint.",
        "Peter und Paula müssen morgen früh aufstehen.",
        "Zwölf Vögel flogen leise über den Wald.",
        "Das Wasser im See ist kühl und ganz ruhig.",
        "Vielleicht bleibe ich noch eine Woche in München.",
        "Ohne Musik wäre mein Leben ziemlich langweilig.",
        "Könnten Sie das bitte noch einmal wiederholen?",
        "Bumm, machte die Tür, und alle blieben stumm.",
        "Sie öffnete das Fenster und hörte die Glocken läuten.",
        "Jeder Mensch braucht manchmal etwas Ruhe.",
        "Auf dem Tisch liegen Papier, Schere und Klebstoff.",
        "Der Affe im Zoo warf mit Nüssen nach uns.",
        "Na gut, dann machen wir es eben so.",
        "Gemüse schmeckt am besten vom Markt.",
        "Übermorgen besuchen wir den alten Leuchtturm.",
    ),
    "fr": (
        "Bonjour, comment allez-vous ce matin?",
        "Je voudrais un peu de beurre et du pain frais.",
        "La petite maison blanche est au bord de la mer.",
        "Nous avons vu un film magnifique avant-hier.",
        "Il fait beau, mais le vent souffle très fort.",
        "Pourquoi n'ouvrez-vous pas la fenêtre?",
        "Mon frère joue du piano depuis neuf ans.",
        "Une bonne soupe chaude, voilà ce qu'il me faut.",
        "Les oiseaux chantent dans les arbres du jardin.",
        "Elle habite au huitième étage d'un vieux immeuble.",
        "Je pense que vous avez parfaitement raison.",
        "Le chat dort sous la table pendant la journée.",
        "Où est le bureau de poste, s'il vous plaît?",
        "Demain, nous partirons à la montagne en voiture.",
        "Beaucoup de gens attendent l'autobus sur la place.",
        "Les fleurs bleues poussent partout en juin.",
        "Papa a préparé une mousse au chocolat.",
        "Il faut toujours bien mâcher, disait ma grand-mère.",
        "Un jour, peut-être, je verrai l'océan.",
        "Quelle surprise! Je ne vous attendais plus.",
        "Le feu brûlait doucement dans la cheminée.",
        "Vous pouvez payer ici ou là-bas, comme vous voulez.",
    ),
    "es": (
        "Buenos días, ¿cómo está usted hoy?",
        "Mi hermana vive en un pueblo pequeño cerca del mar.",
        "El perro de mi vecino ladra por la mañana.",
        "¿Puede decirme dónde está la farmacia?",
        "Mañana vamos a comprar fruta y verdura.",
        "Hace mucho calor, abre la ventana, por favor.",
        "Los niños juegan al fútbol en el parque.",
        "Me gusta beber un vaso de agua fría.",
        "Nunca he visto una película tan buena.",
        "El abuelo cuenta chistes muy viejos.",
        "Llueve poco en verano, pero mucho en otoño.",
        "La guitarra suena muy bien esta noche.",
        "Queremos pasar el fin de semana en la montaña.",
        "Ayer perdí el bolso en el autobús.",
        "Bueno, entonces nos vemos a las nueve.",
        "El pan con tomate es mi desayuno favorito.",
        "¡Qué bonito! Nadie me lo había dicho.",
        "Trabajo desde casa todos los jueves.",
        "Una mujer joven pintaba el puente rojo.",
        "Vuelve pronto, que hay mucho que hablar.",
    ),
    "it": (
        "Buongiorno a tutti, come state oggi?",
        "Il mio amico abita vicino alla stazione.",
        "Vorrei una pizza con molto formaggio, grazie.",
        "Domani mattina andiamo al mare con la famiglia.",
        "La nonna prepara gli gnocchi ogni giovedì.",
        "Che bella giornata, usciamo a fare due passi!",
        "Non trovo più le chiavi della macchina.",
        "I bambini giocano sotto il vecchio ponte.",
        "Mi piace leggere un buon libro prima di dormire.",
        "Quanto costa quel vestito azzurro?",
        "Il gatto beve il latte e poi dorme sul divano.",
        "Abbiamo visto uno spettacolo meraviglioso.",
        "Scusi, dov'è la fermata dell'autobus?",
        "Piove da tre giorni, ma non fa freddo.",
        "Forse è meglio parlarne insieme.",
        "Un po' di musica fa bene a chiunque.",
        "Il fiume passa in mezzo alla città.",
        "Apri la bocca e di' ah, disse il medico.",
        "Sette rondini volavano sopra il campo.",
        "Va bene, ci vediamo dopo pranzo.",
    ),
    "pt": (
        "Bom dia, tudo bem com você?",
        "O meu irmão mora perto da praia.",
        "Amanhã vamos comprar pão e maçãs.",
        "A chuva não parou durante a noite.",
        "Gosto muito de ouvir música portuguesa.",
        "Onde fica a estação de comboios, por favor?",
        "As crianças brincam no jardim depois da escola.",
        "Minha avó faz um bolo de chocolate maravilhoso.",
        "O cão dorme debaixo da mesa.",
        "Quem abriu a janela do quarto azul?",
        "Vou beber um copo de água fresca.",
        "Ela nunca esquece o nome de ninguém.",
        "O povo esperava na praça pela banda.",
        "Talvez chova, talvez faça sol.",
        "Muito obrigado pela sua ajuda.",
        "Um velho barco passou devagar no rio.",
    ),
    "ru": (
        "Доброе утро, как ваши дела?",
        "Мама купила молоко, хлеб и яблоки.",
        "Завтра мы поедем в деревню к бабушке.",
        "Где находится ближайшая аптека?",
        "Мой брат очень любит играть на пианино.",
        "Погода сегодня хорошая, но ветер холодный.",
        "Дети весело бегают по большому парку.",
        "Я никогда не видел такого высокого дома.",
        "Пожалуйста, закройте окно и выключите свет.",
        "Рыба плывёт, птица летит, а человек думает.",
        "Вчера вечером шёл сильный дождь.",
        "Этот фильм мне совсем не понравился.",
        "Бабочка села на белый цветок.",
        "Поезд уходит в восемь часов утра.",
        "Мы выпили чаю и поговорили о жизни.",
        "Хорошо, тогда до встречи в понедельник.",
        "Шапка и шуба лежат в шкафу.",
        "У нас в школе много умных учеников.",
    ),
    "pl": (
        "Dzień dobry, jak się pan dzisiaj czuje?",
        "Moja siostra mieszka blisko morza.",
        "W poniedziałek kupimy chleb i masło.",
        "Gdzie jest najbliższy przystanek autobusowy?",
        "Pies biegnie przez duży zielony park.",
        "Bardzo lubię pić gorącą herbatę z cytryną.",
        "Babcia piecze ciasto ze śliwkami.",
        "Jutro będzie padał deszcz, weź parasol.",
        "Wczoraj oglądaliśmy piękny film.",
        "Żaba siedzi na brzegu małego jeziora.",
        "Proszę otworzyć okno, jest gorąco.",
        "Mam pięć książek o historii muzyki.",
        "Wszyscy mówią, że warto tam pojechać.",
        "Dobrze, spotkamy się po obiedzie.",
    ),
    "nl": (
        "Goedemorgen, hoe gaat het met u?",
        "Mijn broer woont in een klein huis bij de zee.",
        "Morgen gaan we naar de markt om fruit te kopen.",
        "De bakker verkoopt lekker vers brood.",
        "Waar is het station, alstublieft?",
        "De kinderen spelen buiten op het plein.",
        "Het water in de vijver is vandaag bevroren.",
        "Ik wil graag een kopje koffie met melk.",
        "Zij fietst elke dag over de brug naar school.",
        "Vandaag schijnt de zon, maar het waait flink.",
        "Mag ik u iets vragen over de muziek?",
        "Opa vertelt altijd dezelfde mooie verhalen.",
        "We blijven nog een paar weken op het eiland.",
        "Goed, dan bel ik je vanavond op.",
    ),
    "sv": (
        "God morgon, hur mår du i dag?",
        "Min bror bor i ett litet hus vid sjön.",
        "Vi köper bröd, smör och äpplen på torget.",
        "Var ligger järnvägsstationen?",
        "Barnen leker ute fast det regnar.",
        "Mormor bakar bullar varje fredag.",
        "Jag har aldrig sett en så vacker båt.",
        "Det blåser kallt från norr i kväll.",
        "Kan du öppna fönstret, är du snäll?",
        "Hunden sover under det stora bordet.",
        "Musiken hördes ända till stranden.",
        "Sju sjömän sjöng en sång på skeppet.",
        "På lördag ska vi åka upp till fjällen.",
        "Ja, det låter bra, vi ses klockan fem.",
    ),
    "tr": (
        "Günaydın, bugün nasılsınız?",
        "Annem pazardan ekmek ve elma aldı.",
        "Küçük kardeşim okula yürüyerek gidiyor.",
        "Affedersiniz, otobüs durağı nerede?",
        "Yarın akşam birlikte yemek yiyelim.",
        "Bu köprü çok eski ama hâlâ sağlam.",
        "Çocuklar bahçede top oynuyor.",
        "Kedim pencerenin önünde uyumayı sever.",
        "Hava sıcak, biraz su içmek istiyorum.",
        "Dün gece güzel bir film seyrettik.",
        "Şöförün adı Mehmet, vapurun adı Umut.",
        "Tamam, o zaman pazartesi görüşürüz.",
    ),
    "hi": (
        "नमस्ते, आप कैसे हैं?",
        "मेरा भाई एक छोटे गाँव में रहता है।",
        "कल हम बाज़ार से फल और सब्ज़ी लाएँगे।",
        "बच्चे बाहर मैदान में खेल रहे हैं।",
        "मुझे गरम चाय बहुत पसंद है।",
        "आज मौसम बहुत अच्छा है।",
        "कृपया दरवाज़ा बंद कर दीजिए।",
        "दादी हमें पुरानी कहानियाँ सुनाती हैं।",
        "रेलगाड़ी सुबह आठ बजे जाती है।",
        "मैंने इतना ऊँचा पेड़ कभी नहीं देखा।",
        "ठीक है, फिर कल मिलते हैं।",
        "फूल पीले और नीले हैं।",
    ),
    "cmn-latn-pinyin": (
        "ni3 hao3, ni3 jin1 tian1 hao3 ma5?",
        "wo3 de5 peng2 you5 zhu4 zai4 shang4 hai3.",
        "ming2 tian1 wo3 men5 qu4 xue2 xiao4.",
        "qing3 wen4, huo3 che1 zhan4 zai4 na3 li3?",
        "ma1 ma5 mai3 le5 ping2 guo3 he2 mian4 bao1.",
        "bei3 jing1 de5 dong1 tian1 fei1 chang2 leng3.",
        "wo3 xi3 huan5 he1 re4 cha2.",
        "ta1 de5 nü3 er2 wu3 sui4 le5.",
        "bu2 ke4 qi5, zai4 jian4.",
        "hai2 zi5 men5 zai4 wai4 mian4 wan2.",
        "zhe4 ben3 shu1 mei2 you3 yi4 si5.",
        "fang2 zi5 hou4 mian4 you3 yi4 tiao2 he2.",
    ),
    "cs": (
        "Dobré ráno, jak se dnes máte?",
        "Můj bratr bydlí v malém domě u řeky.",
        "Zítra koupíme chléb, mléko a jablka.",
        "Prosím vás, kde je tady nádraží?",
        "Děti si hrají na zahradě za školou.",
        "Babička peče každou sobotu koláče.",
        "Včera večer silně pršelo a foukal vítr.",
        "Řekni mu, ať přijde v půl páté.",
        "Pes spí pod stolem a vůbec ho nic nezajímá.",
        "Dobře, uvidíme se po obědě.",
    ),
    "fi": (
        "Hyvää huomenta, mitä sinulle kuuluu?",
        "Veljeni asuu pienessä talossa meren rannalla.",
        "Huomenna ostamme leipää, voita ja omenoita.",
        "Anteeksi, missä on rautatieasema?",
        "Lapset leikkivät pihalla koko päivän.",
        "Isoäiti leipoo pullaa joka perjantai.",
        "Tänään tuulee kovasti, mutta aurinko paistaa.",
        "Kissa nukkuu pöydän alla eikä välitä mistään.",
        "Yö oli pimeä ja hiljainen.",
        "Hyvä on, nähdään maanantaina.",
    ),
    "ja": (
        "おはよう ございます。 おげんき ですか。",
        "わたしの ともだちは うみの ちかくに すんで います。",
        "あした パンと りんごを かいます。",
        "えきは どこ ですか。",
        "こどもたちは こうえんで あそんで います。",
        "きのうの ばん つよい あめが ふりました。",
        "ふゆの よるは とても ながい です。",
        "まいにち ピアノを ひきます。",
        "その みせの スープは おいしい です。",
        "では また げつようびに あいましょう。",
    ),
}

_ENGLISH = ("en", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbclan")


def languages() -> tuple[str, ...]:
    """All languages for which there is text, English dialects first, by espeak-ng's names."""
    return _ENGLISH + tuple(_OTHERS)


def sentence(language: str, rng: np.random.Generator) -> str:
    """One text of one or two sentences in ``language`` (a name of :func:`languages`).

    English has a handful of pseudo-words now and then. Other languages do not: some voices have no sounds for them.
    """
    base = language.split("-")[0]
    others = _OTHERS.get(language) or _OTHERS.get(base)
    if others is None and base != "en":
        raise ValueError(f"there is no text in the language {language!r}; use one of {', '.join(languages())}")
    if others is not None:
        return _pick(others, rng)
    return _pseudo_words(rng) if rng.random() < 0.08 else _english(rng)


def _pick(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def _english(rng: np.random.Generator) -> str:
    person, thing, when = _pick(_PEOPLE, rng), _pick(_THINGS, rng), _pick(_TIMES, rng)
    return _pick(_TEMPLATES, rng).format(
        P=person[0].upper() + person[1:],
        p=person,
        O=thing[0].upper() + thing[1:],
        o=thing,
        T=when[0].upper() + when[1:],
        t=when,
        d=_pick(_PAST, rng),
        l=_pick(_PLACES, rng),
        a=_pick(_ADJECTIVES, rng),
        v=_pick(_VERBS, rng),
        w=_pick(_VERBS, rng),
        n=_pick(_NUMBERS, rng),
        m=_pick(_NUMBERS, rng),
    )


def _pseudo_words(rng: np.random.Generator) -> str:
    words = []
    for _ in range(int(rng.integers(3, 7))):
        syllables = [
            _pick(_ONSETS, rng) + _pick(_NUCLEI, rng) + _pick(_CODAS, rng) for _ in range(int(rng.integers(1, 4)))
        ]
        words.append("".join(syllables))
    return " ".join(words).capitalize() + "."
