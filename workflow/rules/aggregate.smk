# Tables and figures: cheap views with stable names, rules per study. The marker carries the digest of what they were made
# from, and the script removes the markers of other digests.

for study in filter(lambda study: study.tabulate, STUDIES):

    rule:
        name:
            f"tabulate_study_{study.name}"
        input:
            ancient(later(PLAN.scores, study)),
        output:
            csv=update(f"<results>/tables/{study.name}.csv"),
            md=update(f"<results>/tables/{study.name}.md"),
            html=update(f"<results>/tables/{study.name}.html"),
            tex=update(f"<results>/tables/{study.name}.tex"),
            marker=update(PLAN.marker(study.tabulate)),
        log:
            f"<logs>/tabulate_study/{study.name}.log",
        localrule: True
        conda:
            "../../envs/environment.yaml"
        resources:
            execution=PLAN.execution(study.tabulate),
        params:
            ticket=PLAN.ticket_file(study.tabulate),
        message:
            f"Tabulating {study.name}"
        shell:
            "tabulate_study.py --ticket {params.ticket:q} --output {output.marker:q}"
            " --execution {resources.execution:q} --log {log:q}"

    rule:
        name:
            f"plot_study_{study.name}"
        input:
            ancient(PLAN.marker(study.tabulate)),
        output:
            png=update(f"<results>/figures/{study.name}.png"),
            svg=update(f"<results>/figures/{study.name}.svg"),
            marker=update(PLAN.marker(study.plot)),
        log:
            f"<logs>/plot_study/{study.name}.log",
        localrule: True
        conda:
            "../../envs/environment.yaml"
        resources:
            execution=PLAN.execution(study.plot),
        params:
            ticket=PLAN.ticket_file(study.plot),
        message:
            f"Plotting {study.name}"
        shell:
            "plot_study.py --ticket {params.ticket:q} --output {output.marker:q}"
            " --execution {resources.execution:q} --log {log:q}"


for study in filter(lambda study: study.describe, STUDIES):

    rule:
        name:
            f"describe_study_{study.name}"
        input:
            ancient(later(PLAN.scores, study)),
        output:
            csv=update(f"<results>/tables/{study.name}.csv"),
            md=update(f"<results>/tables/{study.name}.md"),
            html=update(f"<results>/tables/{study.name}.html"),
            tex=update(f"<results>/tables/{study.name}.tex"),
            marker=update(PLAN.marker(study.describe)),
        log:
            f"<logs>/describe_study/{study.name}.log",
        localrule: True
        conda:
            "../../envs/environment.yaml"
        resources:
            execution=PLAN.execution(study.describe),
        params:
            ticket=PLAN.ticket_file(study.describe),
        message:
            f"Describing {study.name}"
        shell:
            "describe_study.py --ticket {params.ticket:q} --output {output.marker:q}"
            " --execution {resources.execution:q} --log {log:q}"


# The claims of the paper, over all studies that they name.
if CLAIMS:

    rule test_claims:
        input:
            ancient(later(PLAN.scores, CLAIMS)),
        output:
            csv=update("<results>/tables/claims.csv"),
            comparisons=update("<results>/tables/claims_comparisons.csv"),
            md=update("<results>/tables/claims.md"),
            html=update("<results>/tables/claims.html"),
            marker=update(PLAN.marker(CLAIMS.claims)),
        log:
            "<logs>/test_claims/claims.log",
        localrule: True
        conda:
            "../../envs/environment.yaml"
        resources:
            execution=PLAN.execution(CLAIMS.claims),
        params:
            ticket=PLAN.ticket_file(CLAIMS.claims),
        message:
            "Testing the claims"
        shell:
            "test_claims.py --ticket {params.ticket:q} --output {output.marker:q}"
            " --execution {resources.execution:q} --log {log:q}"

    rule claims:
        input:
            ancient(later(PLAN.targets, CLAIMS)),
        localrule: True
