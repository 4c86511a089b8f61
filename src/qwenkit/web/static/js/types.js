/**
 * Shapes shared by the modules of the page. Holds no code.
 *
 * @typedef {"user" | "assistant" | "tool"} Role
 * @typedef {"streaming" | "done" | "stopped" | "length" | "failed" | "interrupted"} AnswerState
 *
 * @typedef {object} Attachment
 * @property {string} name
 * @property {number} size bytes of the file
 * @property {string} text
 *
 * @typedef {object} Call a call of a tool, as the model wrote it
 * @property {string} id
 * @property {string} name
 * @property {string} arguments JSON, as far as the model kept to it
 *
 * @typedef {object} AnswerError
 * @property {string} kind "network", "server", "key", "context", "busy" or "silent"
 * @property {string} message
 * @property {number} [status]
 *
 * @typedef {object} Stats
 * @property {number} [prompt] tokens of the prompt
 * @property {number} [cached] of these, found in the cache
 * @property {number} [completion] tokens of the answer
 * @property {number} [reasoning] of these, thoughts
 * @property {number} [first] milliseconds to the first token
 * @property {number} [writing] milliseconds from the first token to the last
 *
 * @typedef {object} Turn a node of a conversation's tree
 * @property {string} id
 * @property {string} conversation
 * @property {string | null} parent
 * @property {Role} role
 * @property {string} content
 * @property {number} created milliseconds
 * @property {Attachment[]} [attachments] of the user
 * @property {string} [reasoning] of the model
 * @property {Call[]} [calls] of the model
 * @property {string} [callId] which call a tool turn answers
 * @property {string} [name] which function it was
 * @property {string} [model]
 * @property {AnswerState} [state]
 * @property {AnswerError} [error]
 * @property {Stats} [stats]
 * @property {boolean} [edited] a person changed the model's words
 *
 * @typedef {object} Settings what is sent along with every question of a conversation; null: as the model says
 * @property {string} system
 * @property {number | null} temperature
 * @property {number | null} top_p
 * @property {number | null} top_k
 * @property {number | null} repetition_penalty
 * @property {number | null} max_tokens
 * @property {number | null} seed
 * @property {boolean | null} thinking
 * @property {string[]} tools ids of the tools that are offered
 *
 * @typedef {object} Conversation
 * @property {string} id
 * @property {string} title
 * @property {boolean} named a person gave the title
 * @property {number} created
 * @property {number} updated
 * @property {string | null} model
 * @property {Settings} settings
 * @property {[string, string][]} choices of the children of the first, the second is shown; "" is the root
 *
 * @typedef {object} Tool
 * @property {string} id
 * @property {string} name
 * @property {string} description
 * @property {object} parameters a JSON schema
 */

export {};
