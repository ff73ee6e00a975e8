"""Sentences of our own that stand for each type of instruction: what `instruction_types` learns the types from.

Written before any instruction of a data set was looked at, and not changed to fit the labelled sample that
`bench.types` measures on. One sentence a line. To mend a type that is often missed, add sentences that say it in other
words; to add a type, add a block, a name in `instruction_types.TYPES` and labels.
"""

SENTENCES: dict[str, str] = {
    "code": """
        Write a Python function that returns the second largest number in a list.
        My JavaScript loop never ends, what is wrong with it?
        Fix the bug in this C++ program: the pointer is freed twice.
        How do I select the rows of a SQL table whose date lies in the last week?
        Create an HTML page with a navigation bar and a CSS style sheet for it.
        Explain what this bash script does line by line.
        Implement a binary search tree in Java with insert and delete.
        I get a TypeError when I call this method, can you help me debug it?
        How can I read a CSV file into a pandas data frame and drop empty columns?
        Refactor this class so that it can be unit tested.
        Write a regular expression that matches e-mail addresses.
        Convert the following code from PHP to Go.
        How do I set up a Docker container for a Flask application?
        Generate a React component that shows a list of users from an API.
        What is the difference between a thread and a process in an operating system?
        Write a program that sorts an array without using the built-in sort.
        How do I undo my last commit in git?
        Add error handling to this code: def read(path): return open(path).read()
        Develop a REST endpoint in Node that stores uploaded files.
        I want to build a small app for Android; which classes do I need for a login screen?
        Configure nginx as a reverse proxy with a certificate on Ubuntu.
        Design a database schema for an online shop with orders and customers.
        Write a shell command that finds all files larger than 100 MB.
        Construct an algorithm that checks whether a string is a palindrome and state its complexity.
        Use numpy to multiply two matrices and print the result.
        Edit this code so that it prints the elements in reverse: for i in range(10): print(i)
    """,
    "maths": """
        Solve the equation 3x + 7 = 22.
        What is 15 percent of 240?
        A train travels 180 miles in 3 hours. How fast does it go?
        Find the derivative of x squared times sin x.
        Anna has 12 apples and gives away 5. How many are left?
        Prove that the square root of two is irrational.
        Calculate the area of a circle with a radius of 4 cm.
        What is the probability of rolling two sixes with two dice?
        Simplify the expression (a + b)^2 - (a - b)^2.
        A shirt costs $40 and is reduced by 25%. What is the new price?
        Compute the integral of 1/x from 1 to e.
        Find the next number in the sequence 2, 6, 12, 20.
        How many ways are there to choose 3 people out of 10?
        Determine the eigenvalues of a 2 x 2 matrix.
        If a rectangle is twice as long as wide and its perimeter is 36, what are its sides?
        What is the greatest common divisor of 84 and 126?
        The mean of five numbers is 8; four of them are 4, 6, 9 and 10. Find the fifth.
        Convert 2.5 kilometres to feet and round to the nearest whole number.
        How many litres of paint are needed for a wall of 5 by 3 metres if a litre covers 8 square metres?
        Show that the sum of the first n odd numbers is n squared.
        Evaluate the limit of sin(x)/x as x goes to 0.
        Find the length of the hypotenuse of a right triangle with legs 6 and 8.
        A bank pays 4% interest a year. How much is $1,000 worth after 3 years?
        Let G be a finite group of order p. Show that G is cyclic.
    """,
    "reasoning": """
        Which of these words does not belong: apple, carrot, banana, cherry?
        Classify each of the following animals as mammal, reptile or bird: whale, lizard, owl, dog.
        Tell me whether each of these sports is played in a team or alone: tennis, rugby, golf.
        If all bloops are razzies and some razzies are green, are some bloops green?
        Decide whether the sentence is positive, negative or neutral in tone.
        Compare city life with country life and say which is better for a child.
        Three friends sit in a row; Tom is not next to Ann. Who sits in the middle?
        What would happen if the moon vanished tomorrow?
        Identify which of these are string instruments and which are percussion: violin, drum, harp, gong.
        Analyse the strengths and weaknesses of this argument.
        Is it ethical to lie to protect a friend's feelings? Argue both sides.
        I leave the house when it is raining and come back dry without an umbrella. How is that possible?
        Evaluate the evidence for and against the claim that video games make people violent.
        Categorise these items as fruit or vegetable: tomato, pear, lettuce.
        A man looks at a portrait and says: his father is my father's son. Who is in the portrait?
        Given that it rained and the street is dry, what can we conclude?
        What are the pros and cons of nuclear energy compared with wind power?
        Which is heavier, a pound of feathers or a pound of iron, and why?
        Explain step by step why the conclusion does not follow from the premises.
        Assess how a rise in interest rates would affect house prices.
        Sort these events in the order in which they happened.
        Choose the right answer and justify it: (A), (B), (C) or (D).
        What are the likely causes of the decline in sales shown in this table?
        Interpret the results of this experiment and say what they mean for the hypothesis.
        Which of these countries are in Asia: Peru, Nepal, Kenya, Laos?
    """,
    "information seeking": """
        What is the capital of Mongolia?
        Who wrote the novel Moby-Dick?
        How does a vaccine work?
        Tell me about the history of the Roman empire.
        What is photosynthesis?
        When did the second world war end?
        Explain the theory of plate tectonics in simple terms.
        What are the main symptoms of diabetes?
        Why is the sky blue?
        Where do penguins live?
        What is the meaning of the word serendipity?
        Give me an overview of the political system of Switzerland.
        Who was the first woman in space?
        What does inflation mean in economics?
        How is cheese made?
        What is the difference between a virus and a bacterium?
        Which planets have rings?
        Describe the life cycle of a butterfly.
        What is the tallest mountain in Africa?
        How do black holes form?
        List the members of the European Union.
        What are the effects of climate change on coral reefs?
        I'd like to know more about the culture of Japan.
        Is coffee bad for the heart?
        What happened at the Boston Tea Party?
        Name the five largest cities in Brazil.
        Can you explain the role of the heart in the human body?
        What are the rules of basketball?
    """,
    "text work": """
        Summarise the following article in three sentences.
        Translate this paragraph into French.
        Correct the grammar of the sentence below.
        Rewrite this e-mail so that it sounds more polite.
        Given this passage, who founded the company and when?
        Extract all names and dates from the text and list them separated by commas.
        Paraphrase the paragraph without changing its meaning.
        Based on the text below, what was the outcome of the battle?
        Please give me a short summary of the passage provided.
        Shorten this text to fifty words.
        Proofread my essay and mark the mistakes.
        From the passage, list the countries where the species is found.
        Turn these notes into a table.
        What does the author say about the river in the paragraph above?
        Read the following reference text and answer the question about it.
        Make this paragraph easier to read for a ten year old.
        Edit the text: remove repetitions and make it flow.
        Using the information in the article, list the awards that the singer won.
        Convert this list into JSON with the keys name and age.
        Translate "good morning, how are you" into Spanish.
        Rephrase the sentence in the passive voice.
        Pull the main points out of this report as bullets.
    """,
    "writing": """
        Write a short story about a dragon who is afraid of fire.
        Compose a poem about autumn.
        Draft a letter to my landlord about the broken heating.
        Write an essay on the importance of friendship.
        Create a slogan for a bakery.
        Write a product description for a wooden watch.
        Write a dialogue between two strangers on a train.
        Compose a cover letter for a job as a nurse.
        Write a blog post about travelling alone.
        Write a haiku about the sea.
        Draft a press release for the opening of a museum.
        Write the opening paragraph of a mystery novel.
        Make up a fairy tale in which the wolf is the hero.
        Write a song about leaving home.
        Write a speech for my sister's wedding.
        Create a fictional character who lives under water and describe her home.
        Write a review of a restaurant you did not like.
        Write an e-mail that invites colleagues to a farewell party.
        Describe a sunset over the desert in vivid language.
        Write a scene in which a detective finds a letter.
        Generate a tweet that announces our new shoes.
        Write a limerick about a cat from Rome.
        Write a science fiction tale set on Mars.
        Write a biography of an imaginary explorer in two paragraphs.
    """,
    "role play": """
        You are a pirate captain. Tell your crew that there is no more rum.
        Pretend to be my grandmother and give me her recipe.
        Act as a job interviewer and ask me questions one by one.
        Imagine you are a knight who meets a dragon; what do you say?
        Play the role of a doctor who talks to an anxious patient.
        As a medieval king, address your people before the battle.
        Respond as if you were Albert Einstein explaining relativity to a child.
        You are a robot that has just become conscious. Describe your first day.
        Speak like Shakespeare from now on.
        Let us role-play: I am a customer and you are the shopkeeper.
        Imagine that you are a ghost haunting an old theatre. Introduce yourself.
        You are a travel guide in ancient Rome, show me around.
        Take on the character of a grumpy wizard and answer my questions.
        As an astronaut stranded on the moon, write your last log entry.
        Act as a Linux terminal and reply only with its output.
        You are Sherlock Holmes: explain how you know where I have been today.
        Pretend you're a cat and tell me what you think of your owner.
        Assume the persona of a strict teacher and scold the class.
        You are the queen of a fairy kingdom. A traveller asks for help. Reply to him.
        Put yourself in the shoes of a spy who must escape from a party.
        You are an expert chef with thirty years of experience. Teach me to chop onions.
        In the voice of a sports commentator, narrate a snail race.
    """,
    "advice and planning": """
        How can I sleep better at night?
        Give me tips for a job interview.
        I want to learn the guitar. Where should I start?
        Plan a three day trip to Lisbon for a family with two children.
        What should I cook for a dinner with vegetarian friends?
        Suggest ten names for a puppy.
        I'm nervous about moving to another city, what should I do?
        Make a weekly workout plan for a beginner.
        What are some good ideas for a birthday present for my father?
        Recommend books for someone who likes crime novels.
        How should I ask my boss for a raise?
        Brainstorm ideas for a school fair.
        What are some ways to save money on groceries?
        Create a study schedule for my final exams.
        My friend does not talk to me any more. How do I make up with her?
        What is the best way to remove a wine stain from a carpet?
        I'm planning a garden and need advice on which vegetables to grow.
        Help me organise a surprise party on a small budget.
        Give me a list of fun things to do on a rainy day.
        Which phone should I buy for less than 300 euros?
        How do I become more confident when I speak in public?
        Outline a marketing plan for a small coffee shop.
        I've been feeling tired lately; can you give me some advice?
        What should I pack for a week in the mountains?
        How can we reduce waste in our office?
    """,
}


def prototypes() -> list[tuple[str, str]]:
    """Every sentence with its type, in the order written."""
    return [(kind, line.strip()) for kind, block in SENTENCES.items() for line in block.splitlines() if line.strip()]
