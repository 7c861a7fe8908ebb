"""Programs beside the trainer: environment, data, checkpoints, documentation.

convert_hf_checkpoint    Hugging Face <-> Megatron checkpoints
layouts                  columns of published benchmarks, as rows of this project
prepare_data             rows of public data sets as prompts, graded against themselves
recovery_study           which wrong responses a teacher could still save
recovery                 its parts
tasks                    problems, verifiers and tiny models of the study
make_arithmetic          the quickstart's arithmetic problems
make_tiny_models         the quickstart's student and teacher, trained here
tiny_tokenizer           their tokenizer
make_smollm2             a real pretrained model from a package, and a cut copy of it
config_reference         docs/configuration.md from the schema
check_contracts          what is used of vLLM and megatron-core, against their releases
contracts                its parts
gpu_proof                what only a GPU can show, part by part; rehearsed on a CPU
proof                    its parts
"""
