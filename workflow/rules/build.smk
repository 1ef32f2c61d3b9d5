# Base models: folders in the layout of the Hugging Face hub; as they came, or after a full fine-tune on seen data sets.


rule build_base_model:
    input:
        ancient(records_of),
    output:
        record=update("<results>/models/{model}-{digest}/record.json"),
    log:
        "<logs>/build_base_model/{model}-{digest}.log",
    conda:
        "../../envs/environment.yaml"
    resources:
        **ASKED,
        execution=execution_of,
    params:
        ticket=ticket_of,
    message:
        "Building {wildcards.model}"
    shell:
        "build_base_model.py --ticket {params.ticket:q} --inputs {input:q} --output {output.record:q}"
        " --execution {resources.execution:q} --log {log:q}"


rule expose_base_model:
    input:
        ancient(records_of),
    output:
        record=update("<results>/exposed/{model}-{digest}/record.json"),
    log:
        "<logs>/expose_base_model/{model}-{digest}.log",
    conda:
        "../../envs/environment.yaml"
    resources:
        **ASKED,
        execution=execution_of_training,
    params:
        ticket=ticket_of,
    message:
        "Showing {wildcards.model} the seen data sets"
    shell:
        "exec expose_base_model.py --ticket {params.ticket:q} --inputs {input:q} --output {output.record:q}"
        " --execution {resources.execution:q} --log {log:q}"
