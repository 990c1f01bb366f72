//! What requests mean, in the words of OpenAI and Anthropic.
