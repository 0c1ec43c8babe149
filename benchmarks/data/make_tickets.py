"""Makes tickets.jsonl: support tickets of a shop that does not exist, as rows in the OpenAI Batch format.

    python -m benchmarks.data.make_tickets

The same rows every time: everything follows from SEED. Texts are put together from the sentences below, so no person
and no real message stands in them. Some rows equal an earlier one, as when somebody presses "send" twice or a form is
posted by two systems: those are what coalescing is for.
"""

import json
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

__all__ = ["EQUAL", "ROWS", "SEED", "lines", "main"]

SEED = 7
ROWS = 400
EQUAL = 32
"""Rows that have the same body as an earlier one."""
LONGEST = 1200
SHORTEST = 60
FILE = Path(__file__).with_name("tickets.jsonl")

LABELS = "billing, delivery, defect, return, account, question, praise"


class Task(NamedTuple):
    share: float
    system: str
    max_tokens: int


TASKS = (
    Task(0.5, f"Classify the customer's message as one of: {LABELS}. Answer with that one word and nothing else.", 8),
    Task(0.3, "Summarize the customer's message in one English sentence, for a colleague who has ten seconds.", 60),
    Task(
        0.2,
        "Write a short, friendly reply to the customer, in the customer's language. Promise nothing that the message "
        "does not let you promise; ask for what is missing.",
        160,
    ),
)

PRODUCTS = {
    "en": ("Alto 2 kettle", "Fjord rain jacket", "Nimbus humidifier", "Terra hiking boots, size 43", "Vela desk lamp", "Pico travel router", "Brisa tower fan", "Lumen bike light set", "Ostra 28 cm frying pan", "Kumo office chair"),
    "de": ("Wasserkocher Alto 2", "Regenjacke Fjord", "Luftbefeuchter Nimbus", "Schreibtischlampe Vela", "Bürostuhl Kumo", "Fahrradlicht Lumen"),
    "fr": ("bouilloire Alto 2", "veste de pluie Fjord", "humidificateur Nimbus", "lampe de bureau Vela", "poêle Ostra 28 cm"),
    "es": ("hervidor Alto 2", "chaqueta Fjord", "humidificador Nimbus", "lámpara Vela", "silla de oficina Kumo"),
    "pt": ("chaleira Alto 2", "casaco Fjord", "ventoinha Brisa", "candeeiro Vela"),
    "pl": ("czajnik Alto 2", "kurtka Fjord", "lampka Vela", "fotel biurowy Kumo"),
    "tr": ("Alto 2 su ısıtıcısı", "Fjord yağmurluk", "Vela masa lambası"),
    "uk": ("чайник Alto 2", "куртка Fjord", "лампа Vela", "крісло Kumo"),
    "ja": ("Alto 2 電気ケトル", "Fjord レインジャケット", "Vela デスクライト", "Kumo オフィスチェア"),
    "zh": ("Alto 2 电热水壶", "Fjord 雨衣", "Vela 台灯", "Nimbus 加湿器"),
    "ar": ("غلاية Alto 2", "مصباح Vela", "سترة Fjord"),
    "hi": ("Alto 2 केतली", "Vela लैंप", "Brisa पंखा"),
}  # fmt: skip

LANGUAGES = {
    "en": 0.58, "de": 0.08, "fr": 0.06, "es": 0.06, "pt": 0.04, "pl": 0.03, "tr": 0.02, "uk": 0.03, "ja": 0.04, "zh": 0.03,
    "ar": 0.02, "hi": 0.01,
}  # fmt: skip

OPENINGS = {
    "en": ("Hi,", "Hello,", "Hello team,", "Good morning,", "Dear support,", "hey,", "To whom it may concern:", "Hi again,", ""),
    "de": ("Guten Tag,", "Hallo,", "Sehr geehrte Damen und Herren,", ""),
    "fr": ("Bonjour,", "Madame, Monsieur,", "Bonsoir,"),
    "es": ("Hola:", "Buenos días:", "Estimados señores:"),
    "pt": ("Olá,", "Bom dia,"),
    "pl": ("Dzień dobry,", "Witam,"),
    "tr": ("Merhaba,", "İyi günler,"),
    "uk": ("Добрий день!", "Вітаю!"),
    "ja": ("お世話になっております。", "こんにちは。"),
    "zh": ("您好，", "你好，"),
    "ar": ("السلام عليكم،", "مرحباً،"),
    "hi": ("नमस्ते,", "नमस्कार,"),
}  # fmt: skip

PROBLEMS = {
    "en": (
        "the {product} from order {order} stopped working after {days} days. It worked fine the evening before.",
        "I was charged twice for order {order} ({price} each time). My bank shows both payments as completed.",
        "order {order} was due on {date} and the tracking page has said \"in transit\" for {days} days now.",
        "you sent me the wrong item. I ordered the {product} in order {order} and the box held something else entirely.",
        "I would like to return the {product} (order {order}). It is unused and I still have the box.",
        "I cannot log in since {date}. The reset mail never arrives, and yes, I looked in the spam folder 🙄.",
        "does the {product} work with 110 volts? I am moving abroad in {days} days and would rather not leave it behind.",
        "just wanted to say that the {product} is the best thing I have bought in years. Thank you!",
        "the {product} makes a high-pitched noise whenever it is switched on. It is quiet enough to ignore by day and impossible to ignore at night.",
        "the parcel for order {order} arrived wet and the {product} inside has rust on it.",
        "the voucher I got for order {order} ({price}) is refused at the checkout: \"not valid for this basket\".",
        "please change the delivery address of order {order} before it leaves the warehouse.",
        "there is a part missing from the {product}: bag C in the leaflet holds six screws, mine held four.",
        "I never signed up for your newsletter and have now asked three times to be taken off it.",
    ),
    "de": (
        "der Artikel „{product}“ aus Bestellung {order} ist nach {days} Tagen kaputtgegangen.",
        "mir wurde die Bestellung {order} doppelt abgebucht, jeweils {price}.",
        "seit {days} Tagen steht bei Bestellung {order} „in Zustellung“, angekommen ist nichts.",
        "ich möchte den Artikel „{product}“ zurückgeben und finde das Rücksendeetikett nicht.",
        "läuft das Gerät ({product}) auch mit 110 Volt? Auf der Produktseite steht darüber nichts.",
    ),
    "fr": (
        "l'article « {product} » de la commande {order} est tombé en panne au bout de {days} jours.",
        "ma commande {order} devait arriver le {date} et je n'ai toujours rien reçu.",
        "j'ai été débité deux fois de {price} pour la commande {order}.",
        "je souhaite retourner l'article « {product} », encore dans son emballage d'origine.",
    ),
    "es": (
        "el artículo «{product}» del pedido {order} dejó de funcionar a los {days} días.",
        "el pedido {order} tenía que llegar el {date} y sigue sin aparecer.",
        "me han cobrado dos veces {price} por el pedido {order}. ¿Pueden revisarlo, por favor?",
        "¿cómo puedo devolver «{product}»? No encuentro la etiqueta en mi cuenta.",
    ),
    "pt": (
        "o artigo «{product}» da encomenda {order} deixou de funcionar ao fim de {days} dias.",
        "a encomenda {order} devia ter chegado a {date} e ainda não recebi nada.",
    ),
    "pl": (
        "produkt „{product}” z zamówienia {order} przestał działać po {days} dniach.",
        "zamówienie {order} miało dotrzeć {date}, a śledzenie przesyłki nic nie pokazuje.",
    ),
    "tr": (
        "{order} numaralı siparişimdeki {product} {days} gün sonra bozuldu.",
        "{order} numaralı sipariş {date} tarihinde gelecekti, hâlâ ulaşmadı.",
    ),
    "uk": (
        "{product} із замовлення {order} перестав працювати через {days} днів після отримання.",
        "замовлення {order} мало прибути {date}, але статус не змінюється вже {days} днів.",
    ),
    "ja": (
        "注文番号 {order} の「{product}」が{days}日で動かなくなりました。電源を入れても反応がありません。使い方は説明書のとおりです。",
        "注文番号 {order} が{date}に届く予定でしたが、{days}日間配送状況が変わっていません。いつ届くのか教えていただけますでしょうか。",
    ),
    "zh": (
        "订单 {order} 里的“{product}”用了{days}天就坏了，按下开关之后没有任何反应，换了插座也一样，说明书上的办法都试过了。",
        "订单 {order} 本来应该在{date}送到，可是物流信息已经{days}天没有更新了，客服电话一直打不通，请帮忙查一下。",
    ),
    "ar": (
        "توقف المنتج «{product}» من الطلب {order} عن العمل بعد {days} أيام من الاستلام.",
        "كان من المفترض أن يصل الطلب {order} بتاريخ {date} ولم يصل حتى الآن.",
    ),
    "hi": (
        "ऑर्डर {order} का «{product}» {days} दिन बाद ही ख़राब हो गया है।",
        "ऑर्डर {order} को {date} तक आना था, पर अभी तक कुछ नहीं मिला।",
    ),
}  # fmt: skip

DETAILS = {
    "en": (
        "I have already tried another socket, another room and, at my sister's insistence, another house.",
        "I called twice; the first time I waited 25 minutes, the second time the line dropped.",
        "Photos are attached. The third one shows it best.",
        "It is a birthday present for {date}, so the timing is not ideal.",
        "I have been a customer since 2016 and this is the first time that I have had to write.",
        "Frankly, for {price} I expected better.",
        "The chat assistant told me to \"clear my cookies\", which I doubt will mend a broken switch.",
        "Your colleague promised a call back within two days. That was {days} days ago.",
        "Nothing dramatic, but I would like to know where I stand.",
        "My neighbour has the same one and hers is fine, so I assume mine is simply a bad piece.",
        "This is UNACCEPTABLE. I have a family of five and no working kitchen!!!",
        "No hurry at all, whenever you get round to it.",
        "The serial number on the bottom reads {order}-B, in case that helps you to find the batch.",
        "I paid by card; the last mail I have from you is the order confirmation.",
        "The courier left a card that says \"3rd attempt\", yet somebody was at home on all three days.",
        "I followed the steps on your help page, from the first to the last, with the result that now the display is blank as well.",
    ),
    "de": (
        "Fotos habe ich angehängt.",
        "Ich habe bereits zweimal angerufen und jedes Mal über zwanzig Minuten in der Warteschleife verbracht.",
        "Für {price} hätte ich mehr erwartet.",
        "Es eilt nicht, aber ich wüsste gern, wie es weitergeht.",
        "Das Gerät soll am {date} verschenkt werden, daher wäre eine schnelle Lösung schön.",
    ),
    "fr": (
        "J'ai joint trois photos.",
        "C'est un cadeau d'anniversaire pour le {date}, j'espère donc une réponse rapide.",
        "J'ai déjà appelé deux fois sans succès.",
        "Pour {price}, je m'attendais à mieux.",
    ),
    "es": (
        "Adjunto fotos.",
        "He llamado dos veces y nadie me ha sabido decir nada.",
        "Lo necesito antes del {date} porque es un regalo.",
        "Por {price} esperaba otra calidad.",
    ),
    "pt": ("Envio fotografias em anexo.", "Já telefonei duas vezes e ninguém atendeu."),
    "pl": ("W załączniku przesyłam zdjęcia.", "Dzwoniłem już dwa razy, bez skutku."),
    "tr": ("Fotoğrafları ekledim.", "İki kez aradım ama kimseye ulaşamadım."),
    "uk": ("Фотографії додаю.", "Я вже двічі телефонувала, але ніхто не відповів."),
    "ja": ("写真を添付しました。", "返品か交換をお願いできますか。"),
    "zh": ("照片见附件。", "希望可以换货或者退款。"),
    "ar": ("أرفقت صوراً للمنتج.", "اتصلت مرتين ولم يجب أحد."),
    "hi": ("मैंने तस्वीरें साथ भेजी हैं।", "मैं दो बार फ़ोन कर चुका हूँ।"),
}  # fmt: skip

CLOSINGS = {
    "en": ("What happens next?", "Please refund it.", "Please send a replacement.", "Thanks, {name}", "Kind regards\n{name}", "I expect an answer by {date}.\n{name}", "Cheers\n{name}", ""),
    "de": ("Wie geht es jetzt weiter?\nMit freundlichen Grüßen\n{name}", "Bitte erstatten Sie mir den Betrag.\nViele Grüße\n{name}", "Danke im Voraus\n{name}"),
    "fr": ("Merci de me rembourser.\nCordialement,\n{name}", "Que dois-je faire ?\n{name}", "Bien à vous\n{name}"),
    "es": ("Espero su respuesta.\nUn saludo,\n{name}", "Quisiera que me devolvieran el dinero.\n{name}", "¡Gracias!\n{name}"),
    "pt": ("Aguardo resposta. Obrigado, {name}", "Podem trocar? Cumprimentos, {name}"),
    "pl": ("Proszę o zwrot pieniędzy.\nPozdrawiam\n{name}", "Co mam teraz zrobić?\n{name}"),
    "tr": ("Ne yapmam gerekiyor?\n{name}", "Teşekkürler\n{name}"),
    "uk": ("Що мені робити далі?\n{name}", "Дякую!\n{name}"),
    "ja": ("よろしくお願いいたします。\n{name}", "ご確認をお願いします。\n{name}"),
    "zh": ("谢谢！\n{name}", "请尽快回复。\n{name}"),
    "ar": ("أرجو الرد سريعاً.\n{name}", "شكراً لكم\n{name}"),
    "hi": ("कृपया जवाब दें।\n{name}", "धन्यवाद\n{name}"),
}  # fmt: skip

NAMES = {
    "en": ("Ana", "R. Okafor", "Siobhán", "J. Lindqvist", "Priya N.", "Tom", "M. Dupont-Hall", "Zoë", "W. Kruger", "Noor"),
    "de": ("J. Müller", "Anneliese Groß", "K. Weiß"),
    "fr": ("Hélène", "F. Lefèvre", "Anaïs B."),
    "es": ("Íñigo", "M. Peña", "Lucía"),
    "pt": ("João", "Inês C."),
    "pl": ("Łukasz", "Żaneta W."),
    "tr": ("Ayşe", "Çağrı"),
    "uk": ("Олена", "Сергій"),
    "ja": ("佐藤", "山田"),
    "zh": ("王芳", "李伟"),
    "ar": ("ليلى", "سامي"),
    "hi": ("आरव", "मीरा"),
}  # fmt: skip


def _text(random: Random) -> str:
    """One message, between SHORTEST and LONGEST characters long."""
    language = random.choices(list(LANGUAGES), list(LANGUAGES.values()))[0]
    facts = {
        "product": random.choice(PRODUCTS[language]),
        "order": f"{random.choice('ABKR')}{random.randrange(100_000, 999_999)}",
        "days": str(random.randrange(3, 28)),
        "date": f"{random.randrange(1, 28)}.{random.randrange(1, 13)}.",
        "price": f"{random.randrange(12, 240)}.{random.choice(('00', '50', '90', '99'))} €",
        "name": random.choice(NAMES[language]),
    }
    # Most people write two or three sentences; a few write everything down.
    count = min(random.choices((0, 1, 2, 4, 8, 14), (20, 30, 25, 15, 7, 3))[0], len(DETAILS[language]))
    problems = random.sample(PROBLEMS[language], 2 if count >= 8 else 1)
    parts = [*problems, *random.sample(DETAILS[language], count)]
    body = ("" if language in ("ja", "zh") else " ").join(parts)
    text = f"{random.choice(OPENINGS[language])}\n{body}\n{random.choice(CLOSINGS[language])}".strip().format(**facts)
    if random.random() < 0.06 and language == "en":
        text = text.upper()
    if len(text) < SHORTEST:
        text += f"\n\n#{facts['order']} · {facts['product']}"
    return text[:LONGEST]


def _body(random: Random) -> dict[str, Any]:
    task = random.choices(TASKS, [task.share for task in TASKS])[0]
    return {
        "model": "auto",
        "messages": [{"role": "system", "content": task.system}, {"role": "user", "content": _text(random)}],
        "max_tokens": task.max_tokens,
        "temperature": 0,
    }


def lines() -> list[str]:
    """All rows, without line ends."""
    random = Random(SEED)
    repeats = set(random.sample(range(20, ROWS), EQUAL))
    bodies: list[dict[str, Any]] = []
    for number in range(ROWS):
        if number in repeats:
            # Half of them follow at once, the others at any time later.
            earlier = number - 1 if random.random() < 0.5 else random.randrange(number)
            bodies.append(bodies[earlier])
        else:
            body = _body(random)
            while body in bodies:
                body = _body(random)
            bodies.append(body)
    return [
        json.dumps(
            {
                "custom_id": f"ticket-{number + 1:04d}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            },
            ensure_ascii=False,
        )
        for number, body in enumerate(bodies)
    ]


def main() -> None:
    FILE.write_text("".join(f"{line}\n" for line in lines()), encoding="utf-8", newline="\n")
    print(f"wrote {ROWS} rows to {FILE}")


if __name__ == "__main__":
    main()
