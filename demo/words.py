"""The texts of the page, in English and in Arabic."""

from dataclasses import dataclass

from cm3.engine.options import Language

WORDS = {  # key: English, Arabic
    "about": (
        "### CM3leon\nOne small transformer generates, edits and describes images and answers questions about them, "
        "in English and Arabic. It was trained on emoji art only.",
        "### CM3leon\nمحوّل صغير واحد يرسم الصور ويغيّرها ويصفها ويجيب عن أسئلة عنها، بالعربية والإنجليزية. لم ير سوى "
        "رسوم الإيموجي.",
    ),
    "draw": ("Draw", "ارسم"),
    "edit": ("Edit", "عدّل"),
    "fill": ("Fill in", "املأ"),
    "describe": ("Describe", "صف"),
    "ask": ("Ask", "اسأل"),
    "write": ("Document", "مستند"),
    "look": ("Look inside", "انظر داخله"),
    "stop": ("Stop", "توقف"),
    "stopped": ("Stopped.", "توقف."),
    "examples": ("Examples", "أمثلة"),
    "example_images": ("Example images: click one", "صور للتجربة: انقر واحدة"),
    "more": ("More", "المزيد"),
    "image": ("Image", "صورة"),
    "images": ("Images", "صور"),
    "n": ("How many", "كم صورة"),
    "prompt": ("What to draw", "ماذا أرسم؟"),
    "negative": ("Negative prompt", "ما الذي أبتعد عنه؟"),
    "best_of": ("Best of", "الأفضل من"),
    "best_of_info": (
        "Generate so many candidates for each image and keep the best",
        "ارسم هذا العدد لكل صورة واحتفظ بأقربها إلى الكلمات",
    ),
    "guidance": ("Guidance", "التوجيه"),
    "guidance_info": ("How much the text counts; 1 = off", "مقدار تأثير النص؛ 1 = بلا توجيه"),
    "falling": ("Guidance falls from row to row", "يقل التوجيه صفا بعد صف"),
    "normalise": ("Normalise the prompt", "صغ الكلمات كما يقرؤها النموذج أحسن قراءة"),
    "temperature": ("Temperature", "درجة العشوائية"),
    "temperature_info": ("0 = always the likeliest token", "0 = الأرجح"),
    "top_p": ("Top-p", "Top-p"),
    "seed": ("Seed", "البذرة"),
    "seed_info": ("The same seed gives the same image", "البذرة نفسها تعطي الصورة نفسها"),
    "dice": ("Random seed", "بذرة جديدة كل مرة"),
    "boxes": ("Place objects: draw boxes with the mouse", "ضع الأشياء: ارسم مربعات بالفأرة"),
    "boxes_info": (
        "Drag on the square, then name the object in the box.",
        "اسحب فوق المربع، ثم اكتب ما بداخله.",
    ),
    "box_name": ("name of the object", "ماذا هنا؟"),
    "clear": ("Clear", "امسح"),
    "structure": ("Follow an image", "اتبع صورة"),
    "kind": ("What to follow", "ماذا منها"),
    "edges": ("edges", "حواف"),
    "segments": ("areas of colour", "مساحات اللون"),
    "plan": ("Plan", "الخطة"),
    "plan_info": (
        "The model writes here what the image shows. Change it and draw again.",
        "يكتب النموذج هنا ما تُظهره الصورة. غيّره وارسم ثانية.",
    ),
    "draw_plan": ("Draw this plan", "ارسم هذه الخطة"),
    "edit_plan": ("Edit to this plan", "عدّل إلى هذه الخطة"),
    "variety": ("Variety", "التنوع"),
    "variety_info": ("How much the plans of one prompt differ", "مقدار اختلاف الخطط للطلب نفسه"),
    "size": ("Size", "الحجم"),
    "size_info": ("Several things always have the usual size", "الأشياء المتعددة لها دائما الحجم المعتاد"),
    "usual": ("usual", "معتاد"),
    "small": ("small", "صغير"),
    "large": ("large", "كبير"),
    "history": ("Your images", "ما رسمته"),
    "use": ("Use this image in", "استعمل هذه الصورة في"),
    "use_result": ("Take the result to all tabs", "خذ النتيجة إلى كل الصفحات"),
    "source": ("Image", "الصورة"),
    "seen": ("What the model sees", "ما يراه النموذج"),
    "edited": ("Before and after", "قبل وبعد"),
    "instruction": ("What to change", "ماذا أغيّر؟"),
    "image_guidance": ("Image guidance", "التوجيه بالصورة"),
    "image_guidance_info": ("How much of the image is kept", "مقدار ما يبقى كما هو"),
    "text_guidance": ("Text guidance", "التوجيه بالكلمات"),
    "text_guidance_info": ("How much the instruction counts", "مقدار تأثير التعليمات"),
    "painting": ("Image: paint over the part to replace", "الصورة: لوّن ما تريد إعادة رسمه"),
    "filled": ("Filled in", "بعد الملء"),
    "shows": ("What the image shows (may be empty)", "ماذا تُظهر الصورة (قد يكون فارغا)"),
    "files": ("Images, one or several", "صورة أو عدة صور"),
    "language": ("Language", "اللغة"),
    "both": ("English and Arabic", "العربية والإنجليزية"),
    "long": ("Long", "بإسهاب"),
    "long_info": ("Say also where things are, and on which background", "اذكر أيضا المكان والخلفية"),
    "description": ("Description", "الوصف"),
    "question": ("Question", "السؤال"),
    "chat": ("Questions and answers", "أسئلة وأجوبة"),
    "start": ("Start of the document", "بداية المستند"),
    "start_info": (
        "Write ___ where the model shall fill in words. Without ___, it continues with text and images.",
        "اكتب ___ حيث يملأ النموذج الكلمات. ومن دونها يواصل بالنص والصور.",
    ),
    "then_image": ("An image after the text (may be empty)", "صورة بعدها (قد تكون فارغة)"),
    "document": ("The document", "المستند"),
    "go_on": ("Continue", "تابع"),
    "codes": ("The codes that the model reads", "الرموز التي يقرؤها النموذج"),
    "score": ("Probability of each token: dark = unlikely", "مدى توقع النموذج لكل رمز: الداكن = مفاجأة"),
    "words": ("Words for the image", "كلمات للصورة"),
    "no_image": (
        "Choose an image first: upload one, or click an image.",
        "اختر صورة أولا: ارفع واحدة أو انقر رسما.",
    ),
    "no_paint": ("Paint over the part to replace first.", "لوّن أولا ما تريد إعادة رسمه."),
    "no_prompt": ("The prompt is empty: say what to draw.", "الطلب فارغ: قل ماذا أرسم."),
    "no_instruction": ("The instruction is empty: say what to change.", "التعليمات فارغة: قل ماذا أغيّر."),
    "no_question": ("The question is empty: ask something.", "السؤال فارغ: اسأل شيئا."),
    "no_start": ("Give the document a text or an image.", "أعط المستند نصا أو صورة."),
    "too_long": ("At most {n} characters.", "{n} حرف على الأكثر."),
    "too_many": ("At most {n} images at once.", "{n} صورة على الأكثر في المرة."),
    "too_slow": ("This took longer than {n} seconds and was stopped.", "استغرق هذا أكثر من {n} ثانية فأوقف."),
    "box_unnamed": ("Name the object in each box.", "اكتب ما بداخل كل مربع."),
    "failed": ("{error}", "تعذّر ذلك: {error}"),
    "unknown": (
        "The model was not trained on: {words}. The image will show something else.",
        "لم يقرأ النموذج قط: {words}. سيرسم شيئا آخر.",
    ),
    "drawn": ("{n} images in {seconds:.1f} s, seed {seed}.", "{n} صور في {seconds:.1f} ث، البذرة {seed}."),
    "done": ("Done in {seconds:.1f} s, seed {seed}.", "تم في {seconds:.1f} ث، البذرة {seed}."),
}
PROMPTS = {
    "en": ["a yellow taxi", "a banana", "a tulip in the noto style", "broccoli, noto style", "قطة"],
    "ar": ["موز", "قطة", "سيارة إسعاف", "دوار الشمس", "a yellow taxi"],
}
INSTRUCTIONS = {
    "en": ["make the background blue", "make the background yellow", "اجعل الخلفية زرقاء"],
    "ar": ["اجعل الخلفية زرقاء", "make the background blue"],
}
QUESTIONS = {
    "en": ["What is this?", "What colour is it?", "What kind of thing is it?", "What style is it?", "ما هذا؟"],
    "ar": ["ما هذا؟", "ما لونه؟", "What is this?"],
}
STARTS = {"en": ["a red apple", "a ___ apple", "a cat"], "ar": ["تفاحة حمراء", "قطة"]}
LANGUAGES: tuple[Language, ...] = ("en", "ar")


@dataclass(frozen=True)
class Say:
    """The texts in one language: say("draw"), say("too_long", n=500)."""

    language: str

    def has(self, key: str) -> bool:
        """Whether there is a text with this key."""
        return key in WORDS

    def __call__(self, key: str, **values: object) -> str:
        return WORDS[key][LANGUAGES.index(self.language)].format(**values)
